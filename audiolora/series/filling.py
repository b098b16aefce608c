"""Filling gaps: never by default, only by a rule that is named, and never further than it is told."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pandas as pd

from audiolora.series.problems import SeriesError, require_long
from audiolora.series.rows import Columns, Device, devices_of

Rule = Literal["interpolate", "previous", "seasonal"]
# A clock that was reset writes stamps of 1970: filling decades of minutes would only fill the memory.
_STEPS_A_ROW, _STEPS_ANYWAY = 100, 100_000
_RULES = ("interpolate", "previous", "seasonal")


def fill(
    frame: pd.DataFrame, *, freq: Any, rule: Rule, limit: int | None = None, season: int | None = None
) -> pd.DataFrame:
    """A copy of `frame` with missing steps and NaN filled by a rule, in y and every covariate.

    Args:
        frame: long form, no device with stamps twice or off the grid.
        freq: the step, e.g. `"h"`.
        rule: `"interpolate"`: a straight line over the gap (it uses the value behind the gap: not for what is forecast
            at that moment); `"previous"`: the last value before; `"seasonal"`: the value one season before. All fill
            only behind a measured value, never before the first.
        limit: a gap of more steps than this stays as it is, whole; None fills every gap.
        season: steps of a season for `"seasonal"`, e.g. 24 for hours of a day.

    Returns: the frame by device and time. `filled(frame, result)` tells how many values were filled where.

    Raises:
        SeriesError: not a long frame, or devices whose stamps do not fit the step.
        ValueError: an unknown rule, a limit or season below 1, or `"seasonal"` without a season.

    Example:
        >>> hours = pd.to_datetime(["2024-01-01 00:00", "2024-01-01 02:00"])
        >>> gappy = pd.DataFrame({"unique_id": "a", "ds": hours, "y": [1.0, 3.0]})
        >>> fill(gappy, freq="h", rule="interpolate")["y"].tolist()
        [1.0, 2.0, 3.0]
    """
    if rule not in _RULES:
        raise ValueError(f"rule must be one of {', '.join(_RULES)}, got {rule!r}")
    for name, value in (("limit", limit), ("season", season)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1 step, got {value}")
    if (rule == "seasonal") != (season is not None):
        raise ValueError(
            f"season= goes with rule='seasonal' and must be given there (24 for hours of a day), got {season}"
        )
    require_long(frame)
    columns = [name for name in frame.columns if name not in ("unique_id", "ds")]
    parts = []
    for device in devices_of(frame, Columns(tuple(columns), ()), freq, np.float64):
        every = _every_step(device)
        values = np.full((len(every), len(columns)), np.nan)
        values[device.steps - device.steps[0]] = device.past.T
        there = np.isin(every, device.steps, assume_unique=True)
        full = np.column_stack([_filled(column, rule, limit, season) for column in values.T])
        # A step that was not there and got no value is still a gap, not a row of nothing.
        kept = there | ~np.isnan(full).all(axis=1)
        part = pd.DataFrame(full[kept], columns=columns)
        part.insert(0, "ds", device.grid.stamps(every[kept]))
        part.insert(0, "unique_id", device.unique_id)
        parts.append(part)
    if not parts:
        return frame.copy()
    result = pd.concat(parts, ignore_index=True).astype({"unique_id": frame["unique_id"].dtype})
    result.attrs = dict(frame.attrs)
    return result[list(frame.columns)]


def filled(before: pd.DataFrame, after: pd.DataFrame) -> pd.DataFrame:
    """How many values `fill` put where.

    Args:
        before: what `fill` was given.
        after: what it returned.

    Returns: unique_id, column, count, first, last (stamps), a row a device and column where something was filled.

    Example:
        >>> hours = pd.to_datetime(["2024-01-01 00:00", "2024-01-01 02:00"])
        >>> gappy = pd.DataFrame({"unique_id": "a", "ds": hours, "y": [1.0, 3.0]})
        >>> filled(gappy, fill(gappy, freq="h", rule="previous"))["count"].tolist()
        [1]
    """
    keys = ["unique_id", "ds"]
    joined = after.merge(before, on=keys, how="left", suffixes=("", " before"), validate="one_to_one")
    found = []
    for column in [name for name in after.columns if name not in keys]:
        new = joined[joined[column].notna() & joined[f"{column} before"].isna()]
        counts = new.groupby("unique_id", sort=False, observed=True)["ds"].agg(count="size", first="min", last="max")
        found.append(counts.reset_index().assign(column=column))
    return pd.concat(found, ignore_index=True)[["unique_id", "column", "count", "first", "last"]]


def _every_step(device: Device) -> np.ndarray:
    first, last = int(device.steps[0]), int(device.steps[-1])
    if last - first > _STEPS_A_ROW * len(device.steps) + _STEPS_ANYWAY:
        begin, end = device.grid.stamps(np.array([first, last]))
        raise SeriesError(
            f"{device.unique_id}: {len(device.steps)} rows over {last - first + 1} steps, {begin} to {end}; drop the "
            "stray stamp at one of the ends, or name a longer freq"
        )
    return np.arange(first, last + 1)


def _filled(values: np.ndarray, rule: str, limit: int | None, season: int | None) -> np.ndarray:
    missing = np.isnan(values)
    if not missing.any() or missing.all():
        return values
    series = pd.Series(values)
    if rule == "interpolate":
        full = series.interpolate("linear", limit_area="inside").to_numpy()
    elif rule == "previous":
        full = series.ffill().to_numpy()
    else:
        assert season is not None, "checked by fill"
        # By phase of the season: the value one season before, itself filled from the one before that.
        full = series.groupby(np.arange(len(values)) % season).ffill().to_numpy()
    return np.where(missing & (_run_lengths(missing) <= (limit or len(values))), full, values)


def _run_lengths(missing: np.ndarray) -> np.ndarray:
    """For each missing value the length of the run of missing values it is in."""
    edges = np.flatnonzero(np.diff(missing.astype(np.int8), prepend=0, append=0))
    lengths = np.zeros(len(missing), np.int64)
    for begin, end in edges.reshape(-1, 2):
        lengths[begin:end] = end - begin
    return lengths
