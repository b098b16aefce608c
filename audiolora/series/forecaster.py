"""A network as a forecaster of sensors: windows, scaling, training, forecasts in the unit of y, backtests, files.

net = TCNForecaster(channels_in=1, horizon=24)
base = Forecaster(net, lookback=168, horizon=24, freq="h")
base.fit(fleet)                                              # a base, in full
adapted = Forecaster(audiolora.adapt(net, r=1), lookback=168, horizon=24, freq="h")
adapted.fit(device)                                          # the adapters of one device
adapted.save("devices/pump7")
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from peft import PeftModel
from torch import nn

from audiolora.series.baselines import long_form
from audiolora.series.cut import joined, rows_of, train_and_validation
from audiolora.series.losses import forecast_loss
from audiolora.series.problems import require_long
from audiolora.series.scaling import Scaler, WindowScaler
from audiolora.series.steps import freq_name, parse_freq
from audiolora.series.windows import Windows, latest, windows

_ROWS_AT_ONCE = 1024


class Forecaster:
    """A network that maps x (N, C, lookback) float32 to (N, horizon), or to (N, horizon, Q) for Q quantiles.

    C counts y, the past and the known covariates, in this order; x is scaled, and so is what the network gives.

    Args:
        net: any module with that contract; or a ``PeftModel`` around one, whose adapters are then what is trained.
        lookback, horizon: steps it sees and forecasts.
        freq: the step, e.g. ``"h"``.
        scaler: `WindowScaler` (each window by its own lookback), `Standard` or `Robust` (by device, fitted in `fit`).
        quantiles: levels in (0, 1), ascending, 0.5 among them: it is the point forecast. () for a point forecast alone.
        known: covariates whose future is known. past: covariates known up to the cutoff.
        loss: ``"mae"``, ``"mse"`` or ``"huber"``, on scaled values; with quantiles it is the pinball loss.
        name: the forecast's column.

    Raises:
        ValueError: a setting out of its range, or a network that gives another shape (both are named).

    Example:
        >>> from audiolora.series.nets import TCNForecaster
        >>> ds = pd.date_range("2024", periods=300, freq="h")
        >>> frame = pd.DataFrame({"unique_id": "a", "ds": ds, "y": np.sin(np.arange(300.0) / 4)})
        >>> forecaster = Forecaster(TCNForecaster(1, 6, channels=4), 48, 6, freq="h")
        >>> history = forecaster.fit(frame, epochs=1, quiet=True)
        >>> forecaster.predict(frame).shape
        (6, 4)
    """

    def __init__(
        self,
        net: nn.Module,
        lookback: int,
        horizon: int,
        *,
        freq: Any,
        scaler: Scaler | None = None,
        quantiles: Sequence[float] = (),
        known: Sequence[str] = (),
        past: Sequence[str] = (),
        loss: str = "mae",
        name: str = "forecast",
    ) -> None:
        _check_columns(known, past, name)
        self.net, self.lookback, self.horizon = net, lookback, horizon
        self.freq, self.scaler = freq_name(freq), scaler or WindowScaler()
        self.quantiles, self.known, self.past = _checked_quantiles(quantiles), tuple(known), tuple(past)
        self.loss, self.name = loss, name
        self._loss = forecast_loss(loss, self.quantiles)
        _check_separable(net)
        self._check_net()

    @property
    def channels(self) -> tuple[str, ...]:
        """What the network's input channels are, in order."""
        return ("y", *self.past, *self.known)

    def fit(
        self,
        frame: pd.DataFrame,
        *,
        after: Any = None,
        until: Any = None,
        val: Any = 0.2,
        epochs: int = 20,
        lr: float = 1e-3,
        batch_size: int = 64,
        seed: int = 0,
        toward_base: float = 0.0,
        patience: int = 5,
        stride: int = 1,
        out: str | os.PathLike[str] | None = None,
        quiet: bool = False,
    ) -> pd.DataFrame:
        """Train what requires a gradient, and keep the epoch that was best on the last part of the time.

        Args:
            frame: long form, with the covariates.
            after, until: targets lie in (after, until]; nothing behind ``until`` is looked at. None: no bound.
            val: how much of that time, at its end, is for validation: a fraction or a timedelta such as ``"7D"``; None
                for none at all: then the last epoch is kept.
            epochs, lr, batch_size, seed, toward_base, patience: `series.training.FitSettings`.
            stride: steps from one training window to the next.
            out: a folder for checkpoints: the same call goes on after an interruption, to the same result.
            quiet: no progress bar, and no table of epochs at the end.

        Returns:
            DataFrame ``epoch``, ``loss``, ``val_loss``, ``best``.

        Raises:
            ValueError: no whole window to train on or to validate by (the devices are named), a setting out of its
                range, no finite loss, or ``out`` holds another training.
        """
        from audiolora.series.training import FitSettings, fit_net

        settings = FitSettings(epochs, lr, batch_size, seed, toward_base, patience)
        frame = self._columns(frame)
        train, held, boundary = train_and_validation(
            frame, self.lookback, self.horizon, after=after, until=until, val=val,
            freq=self.freq, known=self.known, stride=stride,
        )  # fmt: skip
        learned = frame if after is None else frame[frame["ds"] > pd.Timestamp(after)]
        self.scaler = self.scaler.fit(learned, until=until if boundary is None else boundary)
        pairs, folder = self._pairs(train), None if out is None else Path(out)
        judged = None if held is None else self._pairs(held)
        history = fit_net(self.net, self._loss, pairs, judged, settings, out=folder, quiet=quiet)
        if not quiet:
            _print_epochs(history)
        return history

    def predict(self, frame: pd.DataFrame) -> pd.DataFrame:
        """The forecast behind each device's last measured y.

        Args:
            frame: long form; with known covariates its rows go on for ``horizon`` steps, y is NaN there.

        Returns:
            DataFrame ``unique_id``, ``ds``, ``cutoff``, the forecast and with quantiles ``NAME_q0.1``, …, in y's
            unit; sorted by device and time. A device whose last lookback has a gap has no rows.
        """
        return self._forecast(latest(self._columns(frame), **self._latest()))

    def backtest(
        self, frame: pd.DataFrame, *, origins: int = 1, step: int | None = None, start: Any = None
    ) -> pd.DataFrame:
        """Forecasts from a rolling origin; each sees what had been measured up to its cutoff and no more.

        Args:
            frame: long form.
            origins: how many cutoffs.
            step: steps from one to the next; None: ``horizon``.
            start: the first cutoff; None: so that the last forecast ends with the frame.

        Returns:
            As `predict`, and ``y`` (NaN where it is missing). A device whose lookback has a gap at a cutoff, or
            that has no measurement there, has no rows for it.

        Raises:
            ValueError: an origin behind the last stamp.
        """
        return self.forecast_at(
            self.windows_at(frame, self.cutoffs(frame, origins=origins, step=step, start=start)), frame
        )

    def windows_at(self, frame: pd.DataFrame, cutoffs: Sequence[pd.Timestamp]) -> Windows:
        """What the network would see at each cutoff; the same for all forecasters with this one's settings."""
        frame = self._columns(frame)
        parts = [(latest(frame, **self._latest(), at=cutoff), cutoff.to_datetime64()) for cutoff in cutoffs]
        return joined([rows_of(seen, seen.cutoff == cutoff) for seen, cutoff in parts])

    def forecast_at(self, seen: Windows, frame: pd.DataFrame) -> pd.DataFrame:
        """The forecasts of `windows_at`, and y out of `frame`; as `backtest` gives them."""
        found = self._forecast(seen).merge(frame[["unique_id", "ds", "y"]], on=["unique_id", "ds"], how="left")
        first = ["unique_id", "ds", "cutoff", "y"]
        return found.sort_values(["unique_id", "cutoff", "ds"], ignore_index=True)[
            [*first, *(name for name in found.columns if name not in first)]
        ]

    def cutoffs(
        self, frame: pd.DataFrame, *, origins: int = 1, step: int | None = None, start: Any = None
    ) -> list[pd.Timestamp]:
        """The stamps that `backtest` forecasts from; arguments as there."""
        steps = self.horizon if step is None else step
        if origins < 1 or steps < 1:
            raise ValueError(f"origins and step must be at least 1, got {origins} and {steps}")
        offset, last = parse_freq(self.freq), frame.loc[frame["y"].notna(), "ds"].max()
        back = (origins - 1) * steps + self.horizon
        first = last - back * offset if start is None else pd.Timestamp(start)
        found = [first + i * steps * offset for i in range(origins)]
        if found[-1] >= last:
            raise ValueError(f"the cutoff {found[-1]} has nothing behind it, y ends at {last}; take fewer origins, a "
                             "smaller step or an earlier start")  # fmt: skip
        return found

    def validation_loss(self, frame: pd.DataFrame, *, after: Any, until: Any = None) -> float:
        """The mean loss, on scaled values, over every window of `frame` with targets in (after, until]."""
        span = {"freq": self.freq, "known": self.known, "after": after, "until": until}
        seen = windows(self._columns(frame), self.lookback, self.horizon, **span)
        if not len(seen):
            raise ValueError(f"no window has its targets in ({after}, {until}]; give more history, or fill its gaps")
        scaled = self.scaler.statistics(seen)
        forecast = torch.from_numpy(self._run(scaled.transform(seen.x)))
        return float(self._loss(forecast, torch.from_numpy(scaled.transform_target(seen.y)).double()))

    def over(self, net: nn.Module, **changes: Any) -> Forecaster:
        """The same settings, or those in `changes`, over another network, such as an adapted copy of this one's."""
        return Forecaster(net, **(self.settings() | {"scaler": self.scaler} | changes))

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the adapter in PEFT's format, or the whole network, and ``forecaster.json``, in place of the folder."""
        from audiolora.series.saving import save_forecaster

        save_forecaster(self, Path(folder))

    @classmethod
    def load(cls, net: nn.Module, folder: str | os.PathLike[str], **expected: Any) -> Forecaster:
        """What `save` wrote, over the network it belongs to.

        Args:
            net: the plain network: the base that the adapter was trained over, or one of the same architecture.
            folder: from `save`.
            expected: settings that the file must have, e.g. ``lookback=168``.

        Raises:
            ValueError: the file does not fit: another base (by its weights), another shape, or another setting than
                expected; everything that differs is named.
        """
        from audiolora.series.saving import load_forecaster

        return load_forecaster(net, Path(folder), expected)

    def settings(self) -> dict[str, Any]:
        """All but the network, as ``forecaster.json`` has it."""
        plain = ("lookback", "horizon", "freq", "loss", "name")
        lists = ("quantiles", "known", "past")
        own = {name: getattr(self, name) for name in plain} | {name: list(getattr(self, name)) for name in lists}
        return own | {"scaler": self.scaler.to_dict()}

    def _latest(self) -> dict[str, Any]:
        return {"lookback": self.lookback, "horizon": self.horizon, "freq": self.freq, "known": self.known}

    def _columns(self, frame: pd.DataFrame) -> pd.DataFrame:
        require_long(frame)
        if missing := [name for name in self.channels if name not in frame.columns]:
            raise ValueError(f"the frame has no column {', '.join(missing)}, which this forecaster reads; add them")
        return frame[["unique_id", "ds", *self.channels]]

    def _pairs(self, seen: Windows) -> Any:
        from audiolora.series.training import Pairs

        statistics = self.scaler.statistics(seen)
        y = statistics.transform_target(seen.y)
        return Pairs(torch.from_numpy(statistics.transform(seen.x)), torch.from_numpy(y))

    def _forecast(self, seen: Windows) -> pd.DataFrame:
        """Forecasts in y's unit; quantiles are sorted, so that they never cross."""
        statistics = self.scaler.statistics(seen)
        scaled = self._run(statistics.transform(seen.x), seen)
        values = statistics.inverse_target(np.sort(scaled, axis=2) if self.quantiles else scaled)
        if not self.quantiles:
            return long_form(seen, {self.name: values})
        columns = {f"{self.name}_q{q:g}": values[..., i] for i, q in enumerate(self.quantiles)}
        return long_form(seen, {self.name: values[..., self.quantiles.index(0.5)], **columns})

    def _run(self, x: np.ndarray, seen: Windows | None = None) -> np.ndarray:
        """The network on scaled windows, in evaluation mode, float64; a fleet's depends on whose they are (`seen`)."""
        device = next((p.device for p in self.net.parameters()), torch.device("cpu"))
        if not len(x):
            return np.empty((0, self.horizon, len(self.quantiles)) if self.quantiles else (0, self.horizon))
        training = self.net.training
        self.net.eval()
        try:
            with torch.no_grad():
                parts = [self.net(torch.from_numpy(x[i : i + _ROWS_AT_ONCE]).to(device)).cpu().numpy()
                         for i in range(0, len(x), _ROWS_AT_ONCE)]  # fmt: skip
        finally:
            self.net.train(training)
        return np.concatenate(parts).astype(np.float64)

    def _check_net(self) -> None:
        shape = (2, len(self.channels), self.lookback)
        wanted = (2, self.horizon, *((len(self.quantiles),) if self.quantiles else ()))
        rule = f"x {shape} (N, channels {', '.join(self.channels)}, lookback) to {wanted}"
        try:
            got = self._run(np.zeros(shape, np.float32)).shape
        except (RuntimeError, ValueError, IndexError) as error:
            raise ValueError(f"the network must map {rule}, and fails: {str(error).splitlines()[0]}") from error
        if got != wanted:
            raise ValueError(
                f"the network must map {rule}, and gives {got}; change its head, or the forecaster's settings"
            )


def _check_columns(known: Sequence[str], past: Sequence[str], name: str) -> None:
    for called, columns in (("known", known), ("past", past)):
        if isinstance(columns, str):
            raise ValueError(f"{called} must be a list of columns, got the string {columns!r}; try [{columns!r}]")
    names = [*known, *past]
    if twice := sorted({column for column in names if names.count(column) > 1}):
        raise ValueError(f"{', '.join(twice)}: named more than once in known and past; name each covariate once")
    reserved = ("unique_id", "ds", "cutoff", "y")
    if not name or name in reserved or any(column in reserved for column in names):
        raise ValueError(
            f"{', '.join(reserved)} have a meaning of their own; take other names for covariates and forecast"
        )


def _checked_quantiles(quantiles: Sequence[float]) -> tuple[float, ...]:
    levels = tuple(float(q) for q in quantiles)
    ascending = all(low < high for low, high in zip((0.0, *levels), (*levels, 1.0), strict=True))
    if levels and (not ascending or 0.5 not in levels):
        raise ValueError(f"quantiles must ascend within (0, 1), with 0.5 among them, got {levels}; try (0.1, 0.5, 0.9)")
    return levels


def _check_separable(net: nn.Module) -> None:
    """An adapter that trains the base's own tensors leaves no base to compare with, or to save the adapter for."""
    for adapter, config in (net.peft_config if isinstance(net, PeftModel) else {}).items():
        if getattr(config, "bias", "none") != "none":
            raise ValueError(
                f"adapter {adapter!r}: bias={config.bias!r} trains the base's own biases, so the base cannot be told "
                "from the adapter; set lora_bias=True and bias='none', which adapts them beside the base"
            )


def _print_epochs(history: pd.DataFrame) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("epoch", "loss", "val_loss", "", box=None)
    for row in history.itertuples():
        held = "–" if np.isnan(row.val_loss) else f"{row.val_loss:.4f}"
        table.add_row(str(row.epoch), f"{row.loss:.4f}", held, "best" if row.best else "")
    Console().print(table)
