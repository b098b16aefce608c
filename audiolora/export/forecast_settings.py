"""How history becomes what a forecaster's network sees, and its output a forecast: a bundle's task ``"forecast"``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from audiolora.export.fields import as_list, check, is_count, is_number


@dataclass(frozen=True)
class ForecastSettings:
    """`Forecaster.settings`, as JSON has it.

    Args:
        lookback, horizon: steps.
        freq: the step between two stamps, as pandas writes it.
        quantiles: levels, ascending; () for a point forecast.
        past, known: covariates; the channels are y, past, known.
        name: the forecast's column.
        scaler: ``{"kind": "window" | "standard" | "robust", "floor", "unscaled", "devices"}``; devices (location and
            scale by device and column) where the kind is not window.
        step_s: the step in seconds; None where it has no such length.
        time_zone: zone the devices live by, for the calendar; None where it is not known.
    """

    KIND: ClassVar[str] = "forecast"

    lookback: int
    horizon: int
    freq: str
    quantiles: tuple[float, ...]
    past: tuple[str, ...]
    known: tuple[str, ...]
    name: str
    scaler: Mapping[str, Any]
    step_s: float | None = None
    time_zone: str | None = None

    def __post_init__(self) -> None:
        for name in ("lookback", "horizon"):
            check(is_count(getattr(self, name)) and getattr(self, name), name, getattr(self, name), "at least 1 step")
        check(all(is_number(q) and 0 < q < 1 for q in self.quantiles), "quantiles", self.quantiles, "within (0, 1)")
        columns = [*self.past, *self.known, self.freq, self.name]
        check(all(isinstance(name, str) for name in columns), "columns, freq, name", columns, "strings")
        _check_scaler(self.scaler)
        check(self.step_s is None or (is_number(self.step_s) and self.step_s > 0), "step_s", self.step_s, "positive")
        zone = self.time_zone is None or isinstance(self.time_zone, str)
        check(zone, "time_zone", self.time_zone, "a zone such as Europe/Paris, or null")

    @property
    def channels(self) -> tuple[str, ...]:
        """The network's input channels, in order."""
        return ("y", *self.past, *self.known)


def forecast_settings(says: Mapping[str, Any]) -> ForecastSettings:
    """From `Forecaster.settings` or a manifest; what a device has no use for (the loss) is left out.

    Raises:
        ValueError: a setting out of its range.
        TypeError: one is missing or unknown.
    """
    lists = {name: tuple(as_list(says[name])) for name in ("quantiles", "past", "known")}
    return ForecastSettings(**{name: value for name, value in says.items() if name != "loss"} | lists)


def _check_scaler(scaler: Mapping[str, Any]) -> None:
    check(isinstance(scaler, Mapping), "scaler", scaler, "an object")
    kinds = {"window": {"kind", "floor", "unscaled"}}
    kinds["standard"] = kinds["robust"] = kinds["window"] | {"devices"}
    kind = scaler.get("kind")
    check(isinstance(kind, str) and kind in kinds, "scaler", kind, f"one of {', '.join(kinds)}")
    check(set(scaler) == kinds[str(kind)], "scaler", sorted(scaler), f"just {', '.join(sorted(kinds[str(kind)]))}")
    check(is_number(scaler["floor"]) and scaler["floor"] > 0, "scaler: floor", scaler["floor"], "positive")
    unscaled = as_list(scaler["unscaled"])
    check(all(isinstance(name, str) for name in unscaled), "scaler: unscaled", unscaled, "names")
    for device, columns in scaler.get("devices", {}).items():
        for column, pair in columns.items():
            fine = len(as_list(pair)) == 2 and all(map(is_number, pair)) and pair[1] > 0
            check(fine, f"scaler: {device}, {column}", pair, "a location and a positive scale")
