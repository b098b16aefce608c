"""What is new about the devices that a base meets: another sensor, another season, calibration or sampling rate.

A shift takes a fleet and says what the base learns from and what the new devices measure. `none`, `sensor` and `season`
only choose among real measurements; `recalibrate`, `rate` and `resample` compute new ones from them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from audiolora.series.problems import require_long
from audiolora.series.steps import freq_name, parse_freq

SLOWNESS = 3.0
"""Steps in which the recalibrated sensor answers 63 % of a change."""


@dataclass(frozen=True)
class Shift:
    """Two views of one fleet.

    Attributes:
        learned, deployed: long frames: what a base would have seen of each device, and what a new device measures.
        learned_freq, deployed_freq: their steps.
        seasonality: steps a season has in `deployed`.
        away: time between the end of what the base learns from and the first forecast that is scored.
        what: the shift in words.
        simulated: some measurements were computed.
    """

    learned: pd.DataFrame
    deployed: pd.DataFrame
    learned_freq: str
    deployed_freq: str
    seasonality: int
    away: pd.Timedelta
    what: str
    simulated: bool


def apply_shift(name: str, frame: pd.DataFrame, *, freq: Any, seasonality: int, base_column: str = "load_kwh") -> Shift:
    """The two views of `frame`.

    Args:
        name: `"none"`;
            `"sensor"`: the base learned from another sensor of the fleet's devices, the column `base_column`;
            `"season"`: the base ends half a year before it is used;
            `"recalibrate"`: the new devices' sensors answer slowly (a first-order lag), with another gain and zero, and
            their sign turned round;
            `"rate"`: the new devices report how much the quantity changed since the last report, not the quantity;
            `"resample"`: the base learned at half the sampling rate.
        frame: long form.
        freq: its step, of one length (no months).
        seasonality: steps a season has.
        base_column: for `"sensor"`.

    Returns:
        The views; `frame` is not changed.

    Raises:
        ValueError: an unknown shift, or one that this frame does not admit.

    Example:
        >>> ds = pd.date_range("2024", periods=4, freq="h")
        >>> frame = pd.DataFrame({"unique_id": "a", "ds": ds, "y": [1.0, 3.0, 5.0, 7.0]})
        >>> apply_shift("resample", frame, freq="h", seasonality=24).learned["y"].tolist()
        [2.0, 6.0]
    """
    require_long(frame)
    if name not in SHIFTS:
        raise ValueError(f"shift must be one of {', '.join(SHIFTS)}, got {name!r}")
    plain = Shift(frame, frame, freq_name(freq), freq_name(freq), seasonality, pd.Timedelta(0), "none", False)
    return SHIFTS[name](plain, base_column)


def _none(plain: Shift, base_column: str) -> Shift:
    return replace(plain, what="no shift: new devices of the kind that the base learned from")


def _sensor(plain: Shift, base_column: str) -> Shift:
    if base_column not in plain.learned.columns or base_column == "y":
        others = [name for name in plain.learned.columns if name not in ("unique_id", "ds", "y")]
        raise ValueError(
            f"the shift 'sensor' needs a second sensor, the column {base_column!r}; the frame has {others or 'none'}: "
            "name one as base_column, or take another shift"
        )
    learned = plain.learned.assign(y=plain.learned[base_column]).drop(columns=base_column)
    deployed = plain.deployed.drop(columns=base_column)
    return replace(plain, learned=learned, deployed=deployed, what=f"another sensor: the base learned {base_column}")


def _season(plain: Shift, base_column: str) -> Shift:
    return replace(plain, away=pd.Timedelta(days=182), what="another season: the base ends half a year before its use")


def _recalibrate(plain: Shift, base_column: str) -> Shift:
    def answer(y: pd.Series) -> pd.Series:
        # Its pole is exp(-1 / SLOWNESS): one step of a first-order lag whose time constant is SLOWNESS steps.
        return y.ewm(com=1 / (math.expm1(1 / SLOWNESS)), adjust=False).mean().where(y.notna())

    ordered = plain.deployed.sort_values(["unique_id", "ds"], ignore_index=True)
    slow = ordered.groupby("unique_id", observed=True)["y"].transform(answer)
    what = f"recalibrated sensors: a first-order lag of {SLOWNESS:g} steps, gain -2, zero at 10 (simulated)"
    return replace(plain, deployed=ordered.assign(y=10 - 2 * slow), what=what, simulated=True)


def _rate(plain: Shift, base_column: str) -> Shift:
    ordered = plain.deployed.sort_values(["unique_id", "ds"], ignore_index=True)
    devices = ordered.groupby("unique_id", observed=True)
    step = pd.Timedelta(parse_freq(plain.deployed_freq))
    # Behind a gap the change is that of several steps, which is another quantity.
    change = devices["y"].diff().where(devices["ds"].diff() == step)
    begins = ordered["unique_id"] != ordered["unique_id"].shift()
    deployed = ordered.assign(y=change)[~begins].reset_index(drop=True)
    what = "another measuring principle: the devices report changes, the base learned levels (simulated)"
    return replace(plain, deployed=deployed, what=what, simulated=True)


def _resample(plain: Shift, base_column: str) -> Shift:
    step = 2 * parse_freq(plain.learned_freq)
    means = plain.learned.groupby(["unique_id", pd.Grouper(key="ds", freq=step)], observed=True).mean()
    # A mean over fewer steps than two would be another quantity.
    whole = plain.learned.groupby(["unique_id", pd.Grouper(key="ds", freq=step)], observed=True)["y"].count() == 2
    learned = means[whole].reset_index().astype({"unique_id": plain.learned["unique_id"].dtype})
    what = f"another sampling rate: the base learned at {freq_name(step)}, the devices report every "
    return replace(
        plain, learned=learned, learned_freq=freq_name(step), what=what + plain.deployed_freq, simulated=True
    )


SHIFTS: dict[str, Callable[[Shift, str], Shift]] = {
    "none": _none,
    "sensor": _sensor,
    "season": _season,
    "recalibrate": _recalibrate,
    "rate": _rate,
    "resample": _resample,
}
"""By name."""
