"""Scaling: what the net sees is of order one whatever the unit, and every forecast goes back into the unit.

z = (v - location) / scale, by window and channel. Where location and scale come from is all that differs: from the
window's own lookback (`WindowScaler`, causal, knows no device, the default), or from a device's training data
(`Standard`, `Robust`). All are frozen, go to JSON and come back the same, and are inverted exactly up to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol, Self

import numpy as np
import pandas as pd

from audiolora.series.calendar import CALENDAR
from audiolora.series.problems import SeriesError, listing, require_long
from audiolora.series.windows import Windows

_KEYS = ("unique_id", "ds")
# Windows at a time: float64 copies of them stay in the processor's cache.
_CHUNK = 512
# Half the distance between a normal distribution's quartiles is 0.6745 σ: divided by it, the range is a σ.
_QUARTILES_PER_SIGMA = 1.3489795003921634


@dataclass(frozen=True)
class Statistics:
    """Location and scale of N windows by channel, each (N, C) float64; channel 0 is y.

    Example:
        >>> seen = Statistics(np.array([[10.0]]), np.array([[2.0]]))
        >>> seen.inverse_target(seen.transform_target(np.array([[14.0, 8.0]])))
        array([[14.,  8.]])
    """

    location: np.ndarray
    scale: np.ndarray

    def transform(self, x: np.ndarray) -> np.ndarray:
        """Scaled x (N, C, L), in x's dtype."""
        return self._by_chunk(x, lambda part, location, scale: (part - location) / scale)

    def inverse(self, x: np.ndarray) -> np.ndarray:
        """What `transform` was given: (N, C, L)."""
        return self._by_chunk(x, lambda part, location, scale: part * scale + location)

    def _by_chunk(self, x: np.ndarray, formula: Callable[..., np.ndarray]) -> np.ndarray:
        out = np.empty_like(x)
        for begin in range(0, len(x), _CHUNK):
            here = slice(begin, begin + _CHUNK)
            out[here] = formula(x[here], self.location[here, :, None], self.scale[here, :, None])
        return out

    def transform_target(self, y: np.ndarray) -> np.ndarray:
        """Scaled targets (N, horizon), in y's dtype."""
        return ((y - self._of_y("location", y)) / self._of_y("scale", y)).astype(y.dtype)

    def inverse_target(self, forecast: np.ndarray) -> np.ndarray:
        """Point forecasts (N, horizon) or quantiles (N, horizon, Q) in the unit of y; the order of quantiles stays."""
        return (forecast * self._of_y("scale", forecast) + self._of_y("location", forecast)).astype(forecast.dtype)

    def _of_y(self, name: str, like: np.ndarray) -> np.ndarray:
        values: np.ndarray = getattr(self, name)[:, 0]
        return values.reshape(-1, *[1] * (like.ndim - 1))


class Scaler(Protocol):
    """What the forecaster asks of a scaler."""

    kind: ClassVar[str]

    def fit(self, frame: pd.DataFrame, *, until: Any = None) -> Self:
        """A scaler that has learned from `frame`'s rows up to `until`, and from no others."""
        ...

    def statistics(self, windows: Windows) -> Statistics:
        """Location and scale of each window and channel."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """What `scaler_from_dict` reads; JSON can hold it."""
        ...


@dataclass(frozen=True)
class WindowScaler:
    """Mean and standard deviation of each window's own lookback, by channel: causal, and it needs to know no device.

    A shifted known covariate is scaled over the `lookback` values its channel holds.

    Args:
        floor: a lookback that varies by less than this share of its own size (root mean square) counts as constant and
            is scaled as if it varied by that much; one that is zero throughout is left as it is.
        unscaled: channels left as they are; the calendar's waves are of order one, and centring them would erase them.

    Example:
        >>> WindowScaler().to_dict()["floor"]
        0.001
    """

    floor: float = 1e-3
    unscaled: tuple[str, ...] = CALENDAR
    kind: ClassVar[str] = "window"

    def __post_init__(self) -> None:
        _check_floor(self.floor)
        object.__setattr__(self, "unscaled", tuple(self.unscaled))

    def fit(self, frame: pd.DataFrame, *, until: Any = None) -> WindowScaler:
        """Itself: there is nothing to learn."""
        return self

    def statistics(self, windows: Windows) -> Statistics:
        """Location and scale (N, C) of the lookbacks alone; targets are never looked at."""
        location, spread, size = (np.empty(windows.x.shape[:2]) for _ in range(3))
        for begin in range(0, len(windows), _CHUNK):
            here = slice(begin, begin + _CHUNK)
            x = windows.x[here].astype(np.float64)
            location[here] = x.mean(axis=2)
            size[here] = np.sqrt(np.square(x).mean(axis=2))
            spread[here] = x.std(axis=2)
        scale = _floored(spread, self.floor * size)
        return _left_alone(Statistics(location, scale), windows.channels, self.unscaled)

    def to_dict(self) -> dict[str, Any]:
        """`{"kind": "window", "floor": …, "unscaled": […]}`."""
        return {"kind": self.kind, "floor": self.floor, "unscaled": list(self.unscaled)}


@dataclass(frozen=True)
class _Fitted:
    """Location and scale by device and column, learned from training data."""

    floor: float = 1e-3
    unscaled: tuple[str, ...] = CALENDAR
    devices: Mapping[str, Mapping[str, tuple[float, float]]] = field(default_factory=dict)
    kind: ClassVar[str] = ""

    def __post_init__(self) -> None:
        _check_floor(self.floor)
        object.__setattr__(self, "unscaled", tuple(self.unscaled))
        devices = {
            str(name): {str(column): (float(pair[0]), float(pair[1])) for column, pair in columns.items()}
            for name, columns in self.devices.items()
        }
        object.__setattr__(self, "devices", devices)

    @staticmethod
    def _spread(values: Any) -> tuple[pd.DataFrame, pd.DataFrame]:
        raise NotImplementedError

    def fit(self, frame: pd.DataFrame, *, until: Any = None) -> Self:
        """A scaler that knows the devices of `frame`, from their rows up to `until` alone; NaN is left out.

        Devices that were fitted before are kept, and learned anew where `frame` has them.

        Raises:
            SeriesError: not a long frame, or a device without a finite value in a column, or with an infinite one.
        """
        require_long(frame)
        rows = frame if until is None else frame[frame["ds"] <= pd.Timestamp(until)]
        columns = [name for name in frame.columns if name not in _KEYS and name not in self.unscaled]
        by_device = rows.groupby("unique_id", sort=False, observed=True)[columns]
        location, spread = self._spread(by_device)
        size = rows[columns].pow(2).groupby(rows["unique_id"], sort=False, observed=True).mean().pow(0.5)
        scale = pd.DataFrame(
            _floored(spread.to_numpy(), self.floor * size.to_numpy()), index=spread.index, columns=columns
        )
        # The size is infinite or NaN wherever a value is infinite or none is left, which quartiles may hide.
        sound = np.isfinite(size) & np.isfinite(location)
        missing = [name for name in frame["unique_id"].unique() if name not in location.index]
        problems = [f"{name}: no rows up to {until}" for name in missing]
        problems += [
            f"{name}, {column}: no finite mean and spread" for (name, column), fine in sound.stack().items() if not fine
        ]
        if problems:
            raise SeriesError(listing(f"{type(self).__name__} cannot be fitted; look at checks.check", problems))
        learned = {
            str(name): {c: (float(location.at[name, c]), float(scale.at[name, c])) for c in columns}
            for name in location.index
        }
        return replace(self, devices={**self.devices, **learned})

    def statistics(self, windows: Windows) -> Statistics:
        """Location and scale (N, C) as fitted, by device.

        Raises:
            ValueError: a device or a channel that was not fitted.
        """
        scaled = [name for name in windows.channels if name not in self.unscaled]
        names, index = np.unique(windows.unique_id.astype(str), return_inverse=True)
        table = np.tile(np.array([0.0, 1.0]), (len(names), len(windows.channels), 1))
        for row, name in enumerate(names):
            fitted = self.devices.get(str(name), {})
            if lacking := [column for column in scaled if column not in fitted]:
                raise ValueError(
                    f"{name}: {type(self).__name__} was not fitted on {', '.join(lacking)} of this device; fit it on "
                    "the device's training data, or use WindowScaler, which knows no device"
                )
            table[row] = [fitted.get(column, (0.0, 1.0)) for column in windows.channels]
        return _left_alone(Statistics(table[index, :, 0], table[index, :, 1]), windows.channels, self.unscaled)

    def to_dict(self) -> dict[str, Any]:
        """Kind, floor, and by device and column the pair of location and scale."""
        devices = {name: {c: list(pair) for c, pair in columns.items()} for name, columns in self.devices.items()}
        return {"kind": self.kind, "floor": self.floor, "unscaled": list(self.unscaled), "devices": devices}


@dataclass(frozen=True)
class Standard(_Fitted):
    """Mean and standard deviation of a device's training data, by column.

    Example:
        >>> frame = pd.DataFrame({"unique_id": "a", "ds": pd.date_range("2024", periods=2, freq="h"), "y": [1.0, 3.0]})
        >>> Standard().fit(frame).devices["a"]["y"]
        (2.0, 1.0)
    """

    kind: ClassVar[str] = "standard"

    @staticmethod
    def _spread(values: Any) -> tuple[pd.DataFrame, pd.DataFrame]:
        return values.mean(), values.std(ddof=0)


@dataclass(frozen=True)
class Robust(_Fitted):
    """Median and range of the quartiles (in standard deviations of a normal distribution) of a device's training data.

    A few spikes move neither; for meters with outliers.

    Example:
        >>> hours = pd.date_range("2024", periods=3, freq="h")
        >>> frame = pd.DataFrame({"unique_id": "a", "ds": hours, "y": [1.0, 3.0, 99.0]})
        >>> Robust().fit(frame).devices["a"]["y"][0]
        3.0
    """

    kind: ClassVar[str] = "robust"

    @staticmethod
    def _spread(values: Any) -> tuple[pd.DataFrame, pd.DataFrame]:
        return values.median(), (values.quantile(0.75) - values.quantile(0.25)) / _QUARTILES_PER_SIGMA


def scaler_from_dict(saved: Mapping[str, Any]) -> WindowScaler | Standard | Robust:
    """The scaler that `to_dict` described.

    Raises:
        ValueError: an unknown kind, or another setting than that kind has.

    Example:
        >>> scaler_from_dict({"kind": "window", "floor": 0.01, "unscaled": []})
        WindowScaler(floor=0.01, unscaled=())
    """
    kinds = {scaler.kind: scaler for scaler in (WindowScaler, Standard, Robust)}
    settings = dict(saved)
    kind = settings.pop("kind", None)
    if kind not in kinds:
        raise ValueError(f"scaler kind must be one of {', '.join(kinds)}, got {kind!r}")
    try:
        return kinds[kind](**settings)
    except TypeError as error:
        raise ValueError(f"a {kind} scaler cannot be made of {sorted(settings)}: {error}") from None


def _check_floor(floor: float) -> None:
    if not (isinstance(floor, (int, float)) and math.isfinite(floor) and floor > 0):
        raise ValueError(f"floor must be a positive number, got {floor!r}; try floor=1e-3")


def _floored(spread: np.ndarray, floor: np.ndarray) -> np.ndarray:
    """The spread, at least the floor; 1 where both are zero, so that zeros stay zeros."""
    floored = np.maximum(spread, floor)
    return np.where(floored > 0, floored, 1.0)


def _left_alone(seen: Statistics, channels: tuple[str, ...], unscaled: tuple[str, ...]) -> Statistics:
    alone = np.array([name in unscaled for name in channels], bool)
    return Statistics(np.where(alone, 0.0, seen.location), np.where(alone, 1.0, seen.scale))
