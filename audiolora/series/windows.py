"""Windows of a long frame: what the net sees, and what it is to forecast; nothing of the future leaks into the first.

        lookback                     horizon
    [ y … y ………………… y ]│[ target … target ]
                     cutoff: the last stamp of the lookback

A window lies on consecutive stamps without a missing value; those that a gap or a NaN takes away are counted by device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.lib.stride_tricks import sliding_window_view

from audiolora.series.problems import require_long
from audiolora.series.rows import Columns, Device, devices_of, window_columns


@dataclass(frozen=True)
class Windows:
    """N windows over all devices, in the order of the frame's devices and then of time.

    Attributes:
        x: (N, C, lookback) float32, so a counter that runs into the millions is to be differenced first; the channels
            are y, the past covariates, the known covariates. A known covariate is shifted: its column t holds the
            value at t + horizon, so that the last `horizon` columns are the horizon's own.
        y: (N, horizon) float32, the targets; NaN from `latest`.
        unique_id: (N,) str, the device.
        cutoff: (N,) datetime64[ns], the last stamp of the lookback.
        ds: (N, horizon) datetime64[ns], the stamps of the targets.
        channels: C names.
        known: how many of the channels, at the end, are known covariates.
        counts: DataFrame unique_id, windows, lost: how many each device gave, and how many gaps and NaN took away.
    """

    x: np.ndarray
    y: np.ndarray
    unique_id: np.ndarray
    cutoff: np.ndarray
    ds: np.ndarray
    channels: tuple[str, ...]
    known: int
    counts: pd.DataFrame

    def __len__(self) -> int:
        return len(self.y)


@dataclass(frozen=True)
class Split:
    """Three times that part a frame: training up to the first, validation up to the second, test up to the third."""

    train_until: pd.Timestamp
    val_until: pd.Timestamp
    test_until: pd.Timestamp


def windows(
    frame: pd.DataFrame,
    lookback: int,
    horizon: int,
    *,
    freq: Any,
    stride: int = 1,
    after: Any = None,
    until: Any = None,
    known: Sequence[str] = (),
) -> Windows:
    """Every window of `frame` whose targets lie in (`after`, `until`].

    Args:
        frame: long form, as `frames.read` gives it; columns beside unique_id, ds and y are covariates.
        lookback: steps the net sees.
        horizon: steps to forecast.
        freq: the step, e.g. `"h"`.
        stride: steps from one window to the next; counted from the first window a device can have, so that a gap does
            not shift those behind it, and with `after` from the first target behind it, so that cutoffs of all devices
            agree.
        after: targets lie strictly behind it (their lookback may lie before); None for no bound.
        until: no target and no lookback lies behind it; None for no bound.
        known: covariates whose future is known at the cutoff (calendar, weather forecast); `lookback >= horizon` then.

    Returns: the windows; none at all is no error, `counts` says why.

    Raises:
        SeriesError: not a long frame, or devices with stamps off the grid or twice; the message names each.
        ValueError: a number out of range, an unknown freq, or a known covariate that is no column.

    Example:
        >>> hours = pd.date_range("2024", periods=8, freq="h")
        >>> frame = pd.DataFrame({"unique_id": "a", "ds": hours, "y": np.arange(8.0)})
        >>> found = windows(frame, 4, 2, freq="h", stride=2)
        >>> found.x.shape, found.y.tolist()
        ((2, 1, 4), [[4.0, 5.0], [6.0, 7.0]])
    """
    columns = window_columns(frame, lookback, horizon, known)
    if stride < 1:
        raise ValueError(f"stride must be at least 1 step, got {stride}; try stride=1")
    begin, end = _moment("after", after), _moment("until", until)
    spans = (lookback, horizon, stride)
    found = [_device_windows(device, spans, begin, end) for device in devices_of(frame, columns, freq)]
    return _cut(found, columns, lookback, horizon)


def latest(
    frame: pd.DataFrame, lookback: int, horizon: int, *, freq: Any, known: Sequence[str] = (), at: Any = None
) -> Windows:
    """The last window of each device: the lookback that ends at its last measured y; its targets are unknown (NaN).

    Args:
        frame: long form; rows behind the last measured y (y is NaN there) may carry the known covariates' future.
        lookback: steps the net sees.
        horizon: steps to forecast.
        freq: the step, e.g. `"h"`.
        known: covariates whose future is known; the frame must hold it for `horizon` steps.
        at: measurements behind it are left out, e.g. the cutoff of a backtest; known covariates are not.

    Returns: one window a device; a device whose lookback has a gap or a NaN has none, and `counts` says so.

    Raises:
        SeriesError, ValueError: as `windows`.

    Example:
        >>> hours = pd.date_range("2024", periods=8, freq="h")
        >>> frame = pd.DataFrame({"unique_id": "a", "ds": hours, "y": np.arange(8.0)})
        >>> latest(frame, 4, 2, freq="h").x.tolist()
        [[[4.0, 5.0, 6.0, 7.0]]]
    """
    columns = window_columns(frame, lookback, horizon, known)
    moment = _moment("at", at)
    found = [_last_window(device, lookback, horizon, moment) for device in devices_of(frame, columns, freq)]
    return _cut(found, columns, lookback, horizon, targets=False)


def split_times(frame: pd.DataFrame, *, val: Any, test: Any) -> Split:
    """The times that part `frame` into training, validation and test: the same for all devices, so nothing leaks.

    Args:
        frame: long form.
        val: length of the validation part: a timedelta (`"14D"`), or a fraction of the whole span between 0 and 1.
        test: length of the test part, likewise.

    Returns: the times; use them as `windows(until=s.train_until)`, `windows(after=s.train_until, until=s.val_until)`,
    `windows(after=s.val_until, until=s.test_until)`.

    Raises:
        ValueError: a part is not positive, or nothing is left to train on.

    Example:
        >>> frame = pd.DataFrame({"unique_id": "a", "ds": pd.date_range("2024", periods=240, freq="h"), "y": 0.0})
        >>> split_times(frame, val="2D", test="1D").train_until
        Timestamp('2024-01-07 23:00:00')
    """
    require_long(frame)
    first, last = frame["ds"].min(), frame["ds"].max()
    if pd.isna(first):
        raise ValueError("the frame has no stamps to split; read it with frames.read and look at checks.check")
    lengths = [_length(name, part, last - first) for name, part in (("val", val), ("test", test))]
    val_until = last - lengths[1]
    train_until = val_until - lengths[0]
    if train_until <= first:
        raise ValueError(
            f"val={val!r} and test={test!r} leave nothing to train on: the stamps go from {first} to {last}; take less"
        )
    return Split(train_until, val_until, last)


@dataclass(frozen=True)
class _Found:
    """Where the windows of a device start (rows), and how many it could have had more."""

    device: Device
    starts: np.ndarray
    lost: int


def _device_windows(device: Device, spans: tuple[int, int, int], after: Any, until: Any) -> _Found:
    lookback, horizon, stride = spans
    measured = device.steps[np.isfinite(device.past[0])]
    if not len(measured):
        return _Found(device, np.empty(0, np.int64), 0)
    anchor = low = int(measured[0])
    last = int(measured[-1])
    if after is not None:
        anchor = device.grid.last_until(after) + 1 - lookback
        low = max(low, anchor)
    if until is not None:
        last = min(last, device.grid.last_until(until))
    high = last - lookback - horizon + 1
    possible = (high - anchor) // stride - (low - 1 - anchor) // stride if high >= low else 0
    starts = _whole(device, lookback, horizon)
    steps = device.steps[starts]
    starts = starts[(steps >= low) & (steps <= high) & ((steps - anchor) % stride == 0)]
    return _Found(device, starts, possible - len(starts))


def _whole(device: Device, lookback: int, horizon: int) -> np.ndarray:
    """Rows at which a window starts that has every stamp and every value it needs, and a finite one."""
    span = lookback + horizon
    count = len(device.steps) - span + 1
    if count < 1:
        return np.empty(0, np.int64)
    consecutive = device.steps[span - 1 :] - device.steps[:count] == span - 1
    bad_y = _bad_within(device.past[:1], span)[:count]
    bad_past = _bad_within(device.past, lookback)[:count]
    bad_known = _bad_within(device.known, lookback)[horizon : horizon + count]
    return np.flatnonzero(consecutive & ~bad_y & ~bad_past & ~bad_known)


def _bad_within(values: np.ndarray, length: int) -> np.ndarray:
    """For each row, whether one of `length` rows from it on has a value that is not finite: (m - length + 1,)."""
    bad = np.concatenate([[0], np.cumsum(~np.isfinite(values).all(axis=0))])
    return bad[length:] > bad[:-length]


def _last_window(device: Device, lookback: int, horizon: int, at: Any) -> _Found:
    usable = np.isfinite(device.past[0])
    if at is not None:
        usable &= device.steps <= device.grid.last_until(at)
    row = int(np.flatnonzero(usable)[-1]) if usable.any() else -1  # the cutoff's
    start, known_end = row - lookback + 1, row + (horizon if device.known.shape[0] else 0)
    whole = start >= 0 and known_end < len(device.steps)
    if whole:
        consecutive = device.steps[known_end] - device.steps[start] == known_end - start
        finite = np.isfinite(device.past[:, start : row + 1]).all()
        known = np.isfinite(device.known[:, start + horizon : known_end + 1]).all()
        whole = bool(consecutive and finite and known)
    return _Found(device, np.array([start] if whole else [], np.int64), int(not whole))


def _cut(found: list[_Found], columns: Columns, lookback: int, horizon: int, targets: bool = True) -> Windows:
    """The windows themselves, each value copied once."""
    counts = [len(one.starts) for one in found]
    names, total = (*columns.past, *columns.known), sum(counts)
    x, y = np.empty((total, len(names), lookback), np.float32), np.full((total, horizon), np.nan, np.float32)
    cutoff, ds = np.empty(total, "datetime64[ns]"), np.empty((total, horizon), "datetime64[ns]")
    end = 0
    for one, count in zip(found, counts, strict=True):
        if not count:
            continue
        device, starts, here = one.device, one.starts, slice(end, end + count)
        end += count
        for channel, values in enumerate([*device.past, *device.known]):
            shift = horizon if channel >= len(columns.past) else 0
            x[here, channel] = sliding_window_view(values, lookback)[starts + shift]
        if targets:
            y[here] = sliding_window_view(device.past[0], horizon)[starts + lookback]
        steps = device.steps[starts] + lookback - 1
        cutoff[here] = device.grid.stamps(steps)
        ds[here] = device.grid.stamps(steps[:, None] + np.arange(1, horizon + 1))
    ids = np.array([one.device.unique_id for one in found], object)
    table = {"unique_id": pd.Series(ids, dtype=str), "windows": counts, "lost": [one.lost for one in found]}
    shown = pd.DataFrame(table).astype({"windows": "int64", "lost": "int64"})
    return Windows(x, y, np.repeat(ids, counts), cutoff, ds, names, len(columns.known), shown)


def _moment(name: str, value: Any) -> np.datetime64 | None:
    if value is None:
        return None
    moment = pd.Timestamp(value)
    if pd.isna(moment):
        raise ValueError(f"{name} must be a stamp, got {value!r}; leave it away for no bound")
    if moment.tzinfo is not None:
        moment = moment.tz_convert("UTC").tz_localize(None)
    return moment.to_datetime64().astype("datetime64[ns]")


def _length(name: str, part: Any, span: pd.Timedelta) -> pd.Timedelta:
    if isinstance(part, float) and 0 < part < 1:
        return span * part
    try:
        length = pd.Timedelta(part) if not isinstance(part, (int, float)) else pd.NaT
    except ValueError:
        length = pd.NaT
    if pd.isna(length) or length <= pd.Timedelta(0):
        raise ValueError(f"{name} must be a timedelta such as '14D' or a fraction between 0 and 1, got {part!r}")
    return length
