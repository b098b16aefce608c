"""The calendar as known covariates: the hour and the weekday as waves, known however far ahead."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from audiolora.series.problems import require_long
from audiolora.series.steps import parse_freq

CALENDAR = ("hour_sin", "hour_cos", "weekday_sin", "weekday_cos")
"""The columns that `with_calendar` adds; pass them as `known`."""


def with_calendar(frame: pd.DataFrame, *, time_zone: str = "UTC") -> pd.DataFrame:
    """A copy of `frame` with four known covariates: sine and cosine of the hour of day and of the day of the week.

    Args:
        frame: long form; its stamps are UTC.
        time_zone: zone the devices live by, e.g. `"Europe/Paris"`: people follow the clock, not UTC.

    Returns: the frame with the columns of `CALENDAR`, float64 in [-1, 1]; both waves turn steadily with the minutes.

    Raises:
        SeriesError: not a long frame.
        ValueError: an unknown time zone, or the frame has such columns already.

    Example:
        >>> frame = pd.DataFrame({"unique_id": "a", "ds": pd.to_datetime(["2024-01-01 06:00"]), "y": [1.0]})
        >>> with_calendar(frame)["hour_sin"].tolist()
        [1.0]
    """
    require_long(frame)
    if taken := [name for name in CALENDAR if name in frame.columns]:
        raise ValueError(f"the frame already has {', '.join(taken)}; drop or rename them first")
    try:
        local = frame["ds"].dt.tz_localize("UTC").dt.tz_convert(time_zone).dt
    except KeyError:  # zoneinfo's own error is a KeyError
        raise ValueError(f"time_zone {time_zone!r} is unknown; write it as 'Europe/Paris' or 'UTC'") from None
    day = (local.hour + local.minute / 60 + local.second / 3600) / 24
    week = (local.day_of_week + day) / 7
    turns = {"hour": 2 * np.pi * day, "weekday": 2 * np.pi * week}
    waves = {f"{name}_{wave.__name__}": wave(turn) for name, turn in turns.items() for wave in (np.sin, np.cos)}
    return frame.assign(**waves)


def with_horizon(frame: pd.DataFrame, horizon: int, *, freq: Any) -> pd.DataFrame:
    """A copy of `frame` with `horizon` more steps behind each device's last measured y, in which all is missing (NaN).

    The calendar of these steps is what a forecaster reads; rows that are there already stay as they are.

    Example:
        >>> frame = pd.DataFrame({"unique_id": "a", "ds": pd.to_datetime(["2024-01-01 06:00"]), "y": [1.0]})
        >>> with_horizon(frame, 2, freq="h")["y"].tolist()
        [1.0, nan, nan]
    """
    require_long(frame)
    last = frame[frame["y"].notna()].groupby("unique_id", sort=False)["ds"].max()
    steps = [last + h * parse_freq(freq) for h in range(1, horizon + 1)]
    more = pd.concat([step.reset_index() for step in steps], ignore_index=True)
    more = more.astype({"unique_id": frame["unique_id"].dtype, "ds": frame["ds"].dtype})
    joined = pd.concat([frame, more], ignore_index=True).drop_duplicates(["unique_id", "ds"], keep="first")
    order = {name: place for place, name in enumerate(frame["unique_id"].unique())}
    return joined.sort_values(["unique_id", "ds"], key=lambda c: c.map(order) if c.name == "unique_id" else c,
                              ignore_index=True)  # fmt: skip
