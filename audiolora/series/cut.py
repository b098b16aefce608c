"""A frame cut by time into what a forecaster learns from and what it stops by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pandas as pd

from audiolora.series.windows import Windows, windows


def train_and_validation(
    frame: pd.DataFrame, lookback: int, horizon: int, *, after: Any, until: Any, val: Any, **cut: Any
) -> tuple[Windows, Windows | None, pd.Timestamp | None]:
    """Windows before and behind one boundary in time, the same for all devices, and the boundary.

    Args:
        frame: long form.
        lookback, horizon: steps.
        after, until: targets lie in (after, until]; nothing behind ``until`` is looked at.
        val: the last part of that time: a fraction or a timedelta; None for no validation.
        cut: ``freq``, ``known`` and ``stride`` of `series.windows.windows`.

    Raises:
        ValueError: ``val`` is neither, or a part has no window; the devices' rows are counted.
    """
    if until is not None:
        frame = frame[frame["ds"] <= pd.Timestamp(until)]
    boundary = None if val is None else _boundary(frame, after, val)
    train = windows(frame, lookback, horizon, after=after, until=boundary, **cut)
    _check_some(
        train, f"train on: lookback + horizon = {lookback + horizon} steps in a row up to {boundary or 'the end'}"
    )
    if boundary is None:
        return train, None, None
    held = windows(frame, lookback, horizon, after=boundary, **cut)
    _check_some(held, f"validate by: {horizon} targets in a row behind {boundary} (val={val!r})")
    return train, held, boundary


def rows_of(seen: Windows, rows: np.ndarray) -> Windows:
    """Some of the windows: those that are True in ``rows`` (N,)."""
    arrays = {f.name: getattr(seen, f.name) for f in fields(seen)}
    per_window = {name: value[rows] for name, value in arrays.items() if isinstance(value, np.ndarray)}
    return replace(seen, **per_window)


def joined(parts: Sequence[Windows]) -> Windows:
    """Windows behind one another, at least one part; the counts are those of the first."""
    arrays = {f.name: [getattr(part, f.name) for part in parts] for f in fields(parts[0])}
    per_window: dict[str, Any] = {name: np.concatenate(v) for name, v in arrays.items() if isinstance(v[0], np.ndarray)}
    return replace(parts[0], **per_window)


def _boundary(frame: pd.DataFrame, after: Any, val: Any) -> pd.Timestamp:
    measured = frame.loc[frame["y"].notna(), "ds"]
    if measured.empty:
        raise ValueError("the frame has no measured y up to until; take a later one")
    last, first = measured.max(), measured.min()
    if after is not None:
        first = max(first, pd.Timestamp(after))
    if isinstance(val, float) and 0 < val < 1:
        return last - val * (last - first)
    try:
        length = pd.NaT if isinstance(val, (int, float)) else pd.Timedelta(val)
    except ValueError:
        length = pd.NaT
    if pd.isna(length) or not pd.Timedelta(0) < length < last - first:
        raise ValueError(
            f"val must be a fraction between 0 and 1, or a timedelta shorter than {last - first} (from {first} to "
            f"{last}), got {val!r}; try val=0.2 or val='7D'"
        )
    return last - length


def _check_some(found: Windows, purpose: str) -> None:
    if len(found):
        return
    counts = [f"{row.unique_id} ({row.lost} lost to gaps)" for row in found.counts.itertuples()]
    more = f" and {len(counts) - 8} more" if len(counts) > 8 else ""
    raise ValueError(
        f"no window to {purpose}; devices {', '.join(counts[:8]) or 'none'}{more}. Give more history, fill gaps by a "
        "named rule (checks.fill), or take a shorter lookback or horizon or another val"
    )
