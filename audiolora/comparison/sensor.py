"""The sensor task: a forecaster meets devices it never saw, and one adapter is trained for all of them."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

from audiolora.comparison.settings import FleetSpan
from audiolora.comparison.trials import Scores
from audiolora.files import write_json
from audiolora.series.calendar import CALENDAR, with_calendar
from audiolora.series.checks import check, keep_good
from audiolora.series.cut import train_and_validation
from audiolora.series.deployment import deploy
from audiolora.series.fleets import open_fleet
from audiolora.series.forecaster import Forecaster
from audiolora.series.metrics import score
from audiolora.series.nets import TCNForecaster
from audiolora.series.settings import FileSettings
from audiolora.series.shifts import apply_shift
from audiolora.series.steps import parse_freq

_BATCH = 64


@dataclass(frozen=True)
class SensorTask:
    """A fleet, what is new about its unseen devices, and how the base and the ways are trained.

    Args:
        data: a fleet to fetch (citylearn, simbench, turbines, meters), or a CSV or Parquet file.
        shift: of `series.shifts`.
        span: devices, days, the forecaster.
        epochs: passes over the histories, for every way.
        seed: draws the unseen devices, and starts the base.
        file: columns of a file.
    """

    data: str = "citylearn"
    shift: str = "resample"
    span: FleetSpan = FleetSpan()  # noqa: RUF009  frozen
    epochs: int = 12
    seed: int = 0
    file: FileSettings = FileSettings()  # noqa: RUF009  frozen

    def network(self) -> TCNForecaster:
        """An untrained forecaster."""
        return TCNForecaster(1 + len(CALENDAR), self.span.horizon, channels=self.span.channels)

    def prepare(self, folder: Path) -> None:
        """Fetch and check the fleet, draw the devices, train the base."""
        if (folder / "split.json").is_file():
            return
        fleet = open_fleet(self.data, columns=self.file.columns)
        findings = check(fleet.frame, freq=fleet.freq, lookback=self.span.lookback, horizon=self.span.horizon)
        if not self.file.drop_bad:
            findings.raise_if_bad()
        good = keep_good(fleet.frame, findings)
        world = apply_shift(self.shift, good, freq=fleet.freq, seasonality=fleet.seasonality)
        spans: dict[str, Any] = {"history_days": self.span.history_days, "test_days": self.span.test_days}
        plan = deploy(world.deployed, unseen=self.span.unseen, away=world.away, seed=self.seed, **spans)
        reads: dict[str, Any] = {"lookback": self.span.lookback, "horizon": self.span.horizon, "known": CALENDAR}
        torch.manual_seed(self.seed)
        base = Forecaster(self.network(), freq=world.learned_freq, **reads)
        known = self._inputs(world.learned, plan.learned)
        base.fit(
            known, until=plan.base_until, val=0.1, epochs=self.span.base_epochs, lr=2e-3, stride=2 * self.span.stride,
            seed=self.seed, out=folder / "base.training",
        )  # fmt: skip
        base.over(base.net, freq=world.deployed_freq).save(folder / "base")
        self._inputs(world.deployed, plan.unseen).to_parquet(folder / "rows.parquet", index=False)
        write_json(folder / "split.json", plan.to_dict() | {"seasonality": world.seasonality, "what": world.what})

    def open(self, folder: Path) -> OpenSensorTask:
        """After `prepare`."""
        plan = json.loads((folder / "split.json").read_text(encoding="utf-8"))
        base = Forecaster.load(self.network(), folder / "base")
        return OpenSensorTask(self, plan, base, pd.read_parquet(folder / "rows.parquet"))

    def _inputs(self, frame: pd.DataFrame, ids: Sequence[str]) -> pd.DataFrame:
        own = frame.loc[frame["unique_id"].isin(ids), ["unique_id", "ds", "y"]]
        return with_calendar(own, time_zone=self.file.time_zone)


class OpenSensorTask:
    """See `comparison.task.OpenTask`."""

    head: Sequence[str] = ("head",)
    unit = "MASE"

    def __init__(self, task: SensorTask, plan: dict[str, Any], base: Forecaster, rows: pd.DataFrame) -> None:
        self.task, self.forecaster, self.seasonality = task, base, plan["seasonality"]
        self.after, self.until, self.end = (
            pd.Timestamp(plan[name]) for name in ("history_after", "adapted_at", "scored_until")
        )
        self.rows = rows[(rows["ds"] > self.after) & (rows["ds"] <= self.end)]
        train, _, _ = train_and_validation(
            self.rows, task.span.lookback, task.span.horizon, after=None, until=self.until, val=self._val,
            freq=base.freq, known=base.known, stride=task.span.stride,
        )  # fmt: skip
        self.steps = task.epochs * -(-len(train) // _BATCH)

    @property
    def _val(self) -> pd.Timedelta:
        return pd.Timedelta(days=self.task.span.val_days)

    def base(self) -> nn.Module:
        """A copy of the trained network."""
        return copy.deepcopy(self.forecaster.net).requires_grad_(False)

    def fit(self, net: nn.Module, learning_rate: float, seed: int, folder: Path) -> None:
        """On the histories of all unseen devices together."""
        own, epochs = self.forecaster.over(net), self.task.epochs
        own.fit(
            self.rows, until=self.until, val=self._val, epochs=epochs, lr=learning_rate, batch_size=_BATCH, seed=seed,
            patience=epochs, stride=self.task.span.stride, out=folder, quiet=True,
        )  # fmt: skip

    def score(self, net: nn.Module, part: str) -> Scores:
        """MASE of each device."""
        own, horizon = self.forecaster.over(net, name="way"), self.task.span.horizon
        begin = self.until if part == "test" else self.until - self._val
        end = self.end if part == "test" else self.until
        steps = int((end - begin) / pd.Timedelta(parse_freq(own.freq)))
        origins = max(1, (steps - 1) // (horizon + 1))  # they go round the hours of a day
        rows = self.rows[self.rows["ds"] <= end]
        forecasts = own.backtest(rows, origins=origins, step=horizon + 1, start=begin)
        table = score(forecasts, self.rows, seasonality=self.seasonality).sort_values("unique_id")
        return Scores(tuple(table["mase"]), (1.0,) * len(table))

    def loss(self, net: nn.Module) -> torch.Tensor:
        """Of a batch of noise, as large as a training batch."""
        draw = torch.Generator().manual_seed(0)
        x = torch.randn(_BATCH, 1 + len(CALENDAR), self.task.span.lookback, generator=draw)
        y: torch.Tensor = net(x).square().mean()
        return y
