"""The calendar of a window in NumPy: what `audiolora.series.calendar.with_calendar` adds to a frame, without pandas."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import numpy as np

CALENDAR = ("hour_sin", "hour_cos", "weekday_sin", "weekday_cos")
"""Sine and cosine of the hour of day and of the day of the week, by the clock of the device's time zone."""


def calendar(ends: datetime | str, past: int, ahead: int, step_s: float, time_zone: str) -> dict[str, np.ndarray]:
    """The columns of `CALENDAR` over a window and what comes after it.

    Args:
        ends: when the last step of the past was measured; without a zone of its own it is UTC.
        past: steps up to ``ends``, it included.
        ahead: steps after it.
        step_s: from one step to the next, seconds.
        time_zone: zone the device lives by, ``"Europe/Paris"``.

    Returns:
        Each (past + ahead,) float64 in [-1, 1].

    Raises:
        ValueError: a time that cannot be read, or a zone that this machine does not know.

    Example:
        >>> calendar("2024-01-01T06:00", 1, 1, 3600.0, "UTC")["hour_sin"].round(3).tolist()
        [1.0, 0.966]
    """
    try:
        last = datetime.fromisoformat(ends) if isinstance(ends, str) else ends
        if not isinstance(last, datetime):
            raise TypeError(f"a datetime or a string is needed, got {type(last).__name__}")
        zone = ZoneInfo(time_zone)
    except (ValueError, TypeError, ZoneInfoNotFoundError) as error:
        raise ValueError(f"ends={ends!r}, time zone {time_zone!r}: {error}; write 2024-01-31T06:00 and Europe/Paris "
                         "(where the machine has no list of zones: pip install tzdata)") from None  # fmt: skip
    last = last.replace(tzinfo=UTC) if last.tzinfo is None else last.astimezone(UTC)
    local = [(last + timedelta(seconds=step_s * i)).astimezone(zone) for i in range(1 - past, ahead + 1)]
    day = np.array([t.hour + t.minute / 60 + t.second / 3600 for t in local]) / 24
    week = (np.array([t.weekday() for t in local]) + day) / 7
    turns = {"hour": 2 * np.pi * day, "weekday": 2 * np.pi * week}
    return {f"{name}_{wave.__name__}": wave(turn) for name, turn in turns.items() for wave in (np.sin, np.cos)}
