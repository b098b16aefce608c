"""What can be wrong with a sensor history: the names, which of them make a device bad, and what to do about each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

_NOTES = "audiolora.series"  # the key in DataFrame.attrs
_LISTED = 20  # problems that an error spells out before it counts the rest


class SeriesError(ValueError):
    """Sensor data that cannot be used; the message lists every problem by device and column."""


@dataclass(frozen=True)
class Problem:
    """A kind of problem: whether it makes the device unusable, and the remedy."""

    bad: bool
    remedy: str


PROBLEMS: dict[str, Problem] = {
    "gap": Problem(False, "windows never cross it; or fill(frame, freq=…, rule=…, limit=…)"),
    "irregular": Problem(True, "name the right freq, or bring the stamps onto one grid (round, or resample) by device"),
    "duplicate": Problem(True, "keep one row a stamp: frame.drop_duplicates(['unique_id', 'ds'])"),
    "unsorted": Problem(False, "read() sorts; look whether the stamps are what they should be"),
    "mixed_zones": Problem(True, "write an offset at every stamp, or give time_zone= for those without one"),
    "several_offsets": Problem(False, "nothing to do: every stamp states its offset, and all became UTC"),
    "no_stamp": Problem(True, "write ISO 8601 stamps, or parse them with pandas.to_datetime(format=…) first"),
    "not_a_number": Problem(True, "write a number with a decimal point, or leave the field empty"),
    "constant": Problem(True, "a sensor that never moves has nothing to forecast: leave the device out"),
    "constant_covariate": Problem(False, "it tells nothing; drop the column if it is so everywhere"),
    "nan": Problem(False, "windows never cross it; or fill(frame, freq=…, rule=…, limit=…)"),
    "inf": Problem(True, "a number was divided by zero upstream; write NaN in its place"),
    "too_short": Problem(True, "a longer history, a shorter lookback or horizon, or fill() over the gaps"),
    "no_id": Problem(True, "name the device in every row"),
    "duplicate_id": Problem(True, "give each device an id of its own, or keep one of its blocks"),
    "same_series": Problem(True, "the same measurements under two ids: keep one, or train and test are not apart"),
    "unit_jump": Problem(True, "bring both parts to one unit: multiply or divide one of them"),
}
"""By name. A device is bad when one of its problems is; the others are shown and the device stays."""


def finding(unique_id: str, column: str, problem: str, count: int, first: Any, detail: str) -> dict[str, Any]:
    """One row of the findings' table: `count` values, the first at `first` (a stamp, or a place in the source)."""
    assert problem in PROBLEMS, problem
    return {
        "unique_id": unique_id,
        "column": column,
        "problem": problem,
        "count": int(count),
        "first": str(first),
        "detail": detail,
        "remedy": PROBLEMS[problem].remedy,
    }


def listing(headline: str, problems: Sequence[str]) -> str:
    """`headline` and the problems under it, a line each, the first 20 of them."""
    rest = [f"… and {len(problems) - _LISTED} more"] if len(problems) > _LISTED else []
    return "\n  ".join([headline + ":", *problems[:_LISTED], *rest])


def note(frame: pd.DataFrame, found: Sequence[dict[str, Any]]) -> None:
    """Keep what only the reader of the source could see with the frame, for `check` to report."""
    frame.attrs[_NOTES] = [*frame.attrs.get(_NOTES, []), *found]


def notes(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """What `note` kept; empty for a frame of the user's own."""
    return list(frame.attrs.get(_NOTES, []))


def keep_notes(source: pd.DataFrame, target: pd.DataFrame) -> None:
    """Give `target` the notes of `source` about the devices that `target` has, and the source's other attributes."""
    left = set(target["unique_id"])
    target.attrs = {**source.attrs, _NOTES: [one for one in notes(source) if one["unique_id"] in left]}


def require_long(frame: pd.DataFrame) -> None:
    """Raise unless `frame` is in long form: columns unique_id, ds (stamps in UTC without a zone) and y.

    Raises:
        TypeError: not a DataFrame.
        SeriesError: a column is missing or of another type; the message lists all.
    """
    import pandas as pd

    if not isinstance(frame, pd.DataFrame):
        raise TypeError(f"frame must be a pandas.DataFrame in long form, got {type(frame).__name__}; see frames.read")
    problems = [f"no column {name!r}" for name in ("unique_id", "ds", "y") if name not in frame.columns]
    if "ds" in frame.columns and not pd.api.types.is_datetime64_dtype(frame["ds"].dtype):
        problems.append(f"column 'ds' must be datetime64 in UTC without a zone, is {frame['ds'].dtype}")
    if "unique_id" in frame.columns:
        if not pd.api.types.is_string_dtype(frame["unique_id"]):
            problems.append(f"column 'unique_id' must be text, is {frame['unique_id'].dtype}; use .astype(str)")
        elif frame["unique_id"].isna().any():
            problems.append(f"column 'unique_id' is empty in {frame['unique_id'].isna().sum()} rows")
    for name in frame.columns:
        if name not in ("unique_id", "ds") and not pd.api.types.is_numeric_dtype(frame[name].dtype):
            problems.append(f"column {name!r} must hold numbers, is {frame[name].dtype}")
    if problems:
        columns = ", ".join(map(repr, frame.columns)) or "none"
        raise SeriesError(listing(f"not a long frame (columns {columns}; read it with frames.read)", problems))
