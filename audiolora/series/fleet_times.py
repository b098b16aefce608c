"""When each thing happens to a fleet, and which devices have enough of every part.

├── the base learns, the adapters learn from the last days ──┤ validation ┤ test ┤
                                   history_after ├───────────┤ train_until       │ test_until
                                                                          └ val_until
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from audiolora.series.checks import Findings
from audiolora.series.forecaster import Forecaster
from audiolora.series.windows import split_times, windows

_DEVICES_AT_ONCE = 16  # so that the windows of a large fleet are never all in memory


@dataclass(frozen=True)
class FleetTimes:
    """The same for all devices; see the drawing above. An adapter looks at nothing up to ``history_after``."""

    history_after: pd.Timestamp
    train_until: pd.Timestamp
    val_until: pd.Timestamp
    test_until: pd.Timestamp

    def to_dict(self) -> dict[str, str]:
        """As JSON holds it."""
        return {name: str(value) for name, value in vars(self).items()}


def fleet_times(frame: pd.DataFrame, *, history: Any = None, val: Any, test: Any) -> FleetTimes:
    """Set the times back from the stamp at which the median device ends: a clock set to 2099 moves nobody's times.

    Args:
        frame: long form.
        history: how much time the adapters learn from, a timedelta such as ``"56D"``; None for all there is.
        val, test: `series.windows.split_times`.

    Raises:
        ValueError: a part is not positive, or nothing is left to train on.

    Example:
        >>> frame = pd.DataFrame({"unique_id": "a", "ds": pd.date_range("2024", periods=240, freq="h"), "y": 0.0})
        >>> fleet_times(frame, history="3D", val="2D", test="1D").history_after
        Timestamp('2024-01-04 23:00:00')
    """
    ends = frame[frame["y"].notna()].groupby("unique_id", sort=False)["ds"].max().sort_values()
    frame = frame[frame["ds"] <= ends.iloc[(len(ends) - 1) // 2]] if len(ends) else frame
    split = split_times(frame, val=val, test=test)
    first = frame["ds"].min() - pd.Timedelta(1)
    if history is None:
        return FleetTimes(first, split.train_until, split.val_until, split.test_until)
    try:
        length = pd.Timedelta(history)
    except ValueError:
        length = pd.NaT
    if pd.isna(length) or length <= pd.Timedelta(0):
        raise ValueError(f"history must be a positive timedelta such as '56D', got {history!r}")
    return FleetTimes(max(first, split.train_until - length), split.train_until, split.val_until, split.test_until)


def without_windows(base: Forecaster, frame: pd.DataFrame, times: FleetTimes, *, stride: int = 1) -> pd.DataFrame:
    """Devices that lack a window to train on or to validate by, as rows of `Findings.table`.

    Args:
        base: for lookback, horizon, step and columns.
        frame: long form.
        times: when.
        stride: of the windows.
    """
    found = []
    parts = (("train on", times.history_after, times.train_until), ("validate by", times.train_until, times.val_until))
    for some in device_groups(frame, list(dict.fromkeys(frame["unique_id"])), _DEVICES_AT_ONCE):
        for purpose, after, until in parts:
            counts = windows(
                history(some, times)[["unique_id", "ds", *base.channels]], base.lookback, base.horizon,
                freq=base.freq, known=base.known, after=after, until=until, stride=stride,
            ).counts.set_index("unique_id")  # fmt: skip
            for name in some["unique_id"].unique():
                if name not in counts.index or counts.at[name, "windows"] == 0:
                    lost = int(counts.at[name, "lost"]) if name in counts.index else 0
                    found.append(_finding(str(name), purpose, after, until, lost))
    return pd.DataFrame(found, columns=_COLUMNS).drop_duplicates("unique_id", ignore_index=True)


def with_more(findings: Findings, more: pd.DataFrame) -> Findings:
    """The findings and further rows of the same columns."""
    if more.empty:
        return findings
    table = pd.concat([findings.table, more], ignore_index=True)
    return Findings(table.astype({"bad": bool}), findings.freq, findings.inferred, findings.devices)


def history(frame: pd.DataFrame, times: FleetTimes) -> pd.DataFrame:
    """What an adapter may look at, before and behind its cutoffs."""
    return frame[frame["ds"] > times.history_after]


def device_groups(frame: pd.DataFrame, ids: Sequence[str], size: int) -> Iterator[pd.DataFrame]:
    """The rows of ``size`` devices at a time, in the order of ``ids``."""
    for begin in range(0, len(ids), size):
        yield frame[frame["unique_id"].isin(ids[begin : begin + size])]


_COLUMNS = ("unique_id", "column", "problem", "bad", "count", "first", "detail", "remedy")


def _finding(name: str, purpose: str, after: pd.Timestamp, until: pd.Timestamp, lost: int) -> dict[str, Any]:
    detail = f"no window to {purpose}, with targets in ({after}, {until}]; {lost} lost to gaps and missing values"
    remedy = "fill gaps by a named rule, or take a longer part or a shorter lookback or horizon"
    return {"unique_id": name, "column": "y", "problem": "too_short", "bad": True, "count": 0, "first": "nowhere",
            "detail": detail, "remedy": remedy}  # fmt: skip
