"""The regular grid of stamps that a device reports on: which step a stamp is, and which stamp a step is."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from pandas.tseries.frequencies import to_offset

# pandas does not count days and weeks as steps of one length, since a zone's days have 23 to 25 hours; ours are UTC.
_DAY_NS = 24 * 3600 * 10**9
_MONTHS, _QUARTERS, _YEARS = ("MS", "ME"), ("QS", "QS-FEB", "QS-MAR", "QE", "QE-JAN", "QE-FEB"), ("YS", "YE")
# By the days from one stamp to the next.
_CALENDAR = {
    **dict.fromkeys(range(28, 32), _MONTHS),
    **dict.fromkeys(range(89, 93), _QUARTERS),
    **dict.fromkeys((365, 366), _YEARS),
}


def parse_freq(freq: Any) -> Any:
    """A pandas offset from an alias (`"15min"`, `"h"`, `"D"`, `"MS"`), a timedelta or an offset.

    Raises:
        ValueError: no frequency pandas knows, or one that does not go forward.

    Example:
        >>> parse_freq("15min").freqstr
        '15min'
    """
    try:
        offset = to_offset(freq)
    except (ValueError, TypeError) as error:
        raise ValueError(f"freq {freq!r} is none that pandas knows ({error}); try 'h', '15min', 'D' or 'MS'") from None
    if offset is None or offset.n <= 0:
        raise ValueError(f"freq must go forward, got {freq!r}; try 'h', '15min', 'D' or 'MS'")
    return offset


def fixed_ns(offset: Any) -> int | None:
    """Nanoseconds a step for steps of one length, None for those of the calendar (months, business days, …)."""
    if isinstance(offset, pd.offsets.Week):
        return int(offset.n) * 7 * _DAY_NS
    try:
        return int(pd.Timedelta(offset).as_unit("ns").value)
    except ValueError:
        return None


def freq_name(freq: Any) -> str:
    """The short alias of a frequency: `"h"`, not `"60min"`; `"D"`, not `"24h"`."""
    offset = parse_freq(freq)
    width = fixed_ns(offset)
    if width is None or isinstance(offset, pd.offsets.Week):
        return str(offset.freqstr)
    if width % _DAY_NS == 0:
        return "D" if width == _DAY_NS else f"{width // _DAY_NS}D"
    return str(to_offset(pd.Timedelta(width, unit="ns")).freqstr)


def infer_freq(devices: list[np.ndarray]) -> str | None:
    """The most frequent difference between neighbouring stamps over all devices; months, quarters and years by name.

    Args:
        devices: each device's stamps, datetime64[ns], in any order.

    Returns: an alias, or None where no device has two different stamps.
    """
    differences = [np.diff(np.unique(stamps[~np.isnat(stamps)])).astype(np.int64) for stamps in devices]
    widths, counts = np.unique(np.concatenate([*differences, np.empty(0, np.int64)]), return_counts=True)
    if not len(widths):
        return None
    mode = int(widths[counts.argmax()])
    # Months are no two alike: a rule of the calendar on which all stamps of the longest history lie.
    longest = np.unique(max(devices, key=len))
    for name in _CALENDAR.get(mode // _DAY_NS, ()):
        if Grid.of(longest, name).steps(longest)[1].all():
            return name
    return freq_name(pd.Timedelta(mode, unit="ns"))


@dataclass(frozen=True)
class Grid:
    """The steps of one device: step 0 is at or before its first stamp.

    Attributes:
        offset: the pandas offset of one step.
        start: stamp of step 0, datetime64[ns].
        end: the last stamp the device has, datetime64[ns].
    """

    offset: Any
    start: np.datetime64
    end: np.datetime64

    @classmethod
    def of(cls, stamps: np.ndarray, freq: Any) -> Grid:
        """The grid of most of `stamps` (datetime64[ns], no NaT, at least one): one stray stamp does not move it."""
        offset, first, last = parse_freq(freq), stamps.min(), stamps.max()
        width = fixed_ns(offset)
        if width is not None:
            phases, counts = np.unique(stamps.astype(np.int64) % width, return_counts=True)
            first_ns = int(first.astype(np.int64))
            ahead = (first_ns - int(phases[counts.argmax()])) % width
            first = np.datetime64(first_ns - ahead, "ns")
        return cls(offset, first, last)

    @cached_property
    def _calendar(self) -> pd.DatetimeIndex:
        return pd.date_range(self.start, self.end, freq=self.offset)

    def steps(self, stamps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Step of each stamp (int64), and whether it lies on the grid (bool); steps off the grid mean nothing."""
        width = fixed_ns(self.offset)
        if width is None:
            found = self._calendar.get_indexer(pd.DatetimeIndex(stamps))
            return found.astype(np.int64), found >= 0
        since = stamps.astype(np.int64) - self.start.astype(np.int64)
        return since // width, since % width == 0

    def stamps(self, steps: np.ndarray) -> np.ndarray:
        """Stamps (datetime64[ns]) of steps, beyond the device's last one too; any shape."""
        width = fixed_ns(self.offset)
        if width is not None:
            return self.start + np.asarray(steps) * np.timedelta64(width, "ns")
        periods = int(np.max(steps, initial=0)) + 1
        return pd.date_range(self.start, periods=periods, freq=self.offset).to_numpy("datetime64[ns]")[steps]

    def last_until(self, moment: np.datetime64) -> int:
        """The last step whose stamp is at or before `moment`; may be negative, or beyond the last stamp."""
        width = fixed_ns(self.offset)
        if width is None:
            return int(self._calendar.searchsorted(pd.Timestamp(moment), side="right")) - 1
        return int(moment.astype("datetime64[ns]").astype(np.int64) - self.start.astype(np.int64)) // width
