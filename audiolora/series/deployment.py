"""Which devices a base learns from and which it meets, and the times at which each thing happens.

pretraining devices   ├──────── base learns ────────┤
unseen devices                 ├─ history (N days) ─┼─ forecasts that are scored ─┤
                                          adapted at ┘
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import numpy as np
import pandas as pd


@dataclass(frozen=True)
class Deployment:
    """Devices and times; see the drawing above.

    Attributes:
        learned, unseen: devices, in the order of the frame.
        base_until: the base sees nothing behind it.
        history_after, adapted_at: an unseen device's history lies in (history_after, adapted_at].
        scored_until: the last target.
    """

    learned: tuple[str, ...]
    unseen: tuple[str, ...]
    base_until: pd.Timestamp
    history_after: pd.Timestamp
    adapted_at: pd.Timestamp
    scored_until: pd.Timestamp

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {k: list(v) if isinstance(v, tuple) else str(v) for k, v in vars(self).items()}


def deploy(
    frame: pd.DataFrame,
    *,
    unseen: int,
    history_days: float,
    test_days: float,
    end: Any = None,
    away: pd.Timedelta = pd.Timedelta(0),  # noqa: B008  immutable
    seed: int = 0,
) -> Deployment:
    """Draw the unseen devices, and set the times back from the end.

    Args:
        frame: long form.
        unseen: how many devices the base never sees.
        history_days: what each of them has measured before it is adapted.
        test_days: how long forecasts are scored behind that.
        end: the last stamp to score; None: the last measurement.
        away: how long before the adaptation the base stopped learning.
        seed: of the draw.

    Raises:
        ValueError: too few devices, or too little time.

    Example:
        >>> ds = pd.date_range("2024", periods=1000, freq="h")
        >>> frame = pd.concat([pd.DataFrame({"unique_id": name, "ds": ds, "y": 1.0}) for name in "abc"])
        >>> deploy(frame, unseen=1, history_days=7, test_days=7).adapted_at
        Timestamp('2024-02-04 15:00:00')
    """
    ids = list(dict.fromkeys(frame["unique_id"]))
    if not 0 < unseen < len(ids):
        raise ValueError(f"unseen must leave a device to learn from: 1 to {len(ids) - 1} of {len(ids)}, got {unseen}")
    for name, days in (("history_days", history_days), ("test_days", test_days)):
        if not days > 0:
            raise ValueError(f"{name} must be positive, got {days}; try 28")
    drawn = set(np.random.default_rng(seed).permutation(ids)[:unseen])
    first, last = frame["ds"].min(), frame.loc[frame["y"].notna(), "ds"].max()
    scored_until = last if end is None else min(last, pd.Timestamp(end))
    adapted_at = scored_until - pd.Timedelta(days=test_days)
    base_until, history_after = adapted_at - away, adapted_at - pd.Timedelta(days=history_days)
    if min(base_until, history_after) <= first:
        raise ValueError(
            f"the measurements begin at {first}, and {history_days:g} days of history, {test_days:g} of test"
            f"{f' and {away.days} between base and devices' if away else ''} before {scored_until} leave nothing; "
            "take fewer days, or a later end"
        )
    learned = tuple(name for name in ids if name not in drawn)
    return Deployment(
        learned, tuple(name for name in ids if name in drawn), base_until, history_after, adapted_at, scored_until
    )


def folder_name(unique_id: str) -> str:
    """A device's id as the name of a folder: what a file system could misread is written as %XX.

    Example:
        >>> folder_name("load/H0 A"), folder_name("..")
        ('load%2FH0 A', '%2E%2E')
    """
    quoted = quote(unique_id, safe=" ")
    return quoted.replace(".", "%2E") if set(quoted) == {"."} else quoted
