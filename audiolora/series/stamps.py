"""Stamps as they are written, brought to UTC; what cannot be without a guess stays without a stamp, and is reported."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from audiolora.series.problems import SeriesError

# An offset is looked for behind a time of day only: "2024-01-05" ends in what would pass for one.
_OFFSET = r"(?:\d{2}:\d{2}.*|T\d{4,6}(?:[.,]\d+)?)([Zz]|UTC|GMT|[+-]\d{2}(?::?\d{2})?)\s*$"


@dataclass(frozen=True)
class Stamps:
    """One column of stamps, read.

    Attributes:
        ds: datetime64[ns], UTC without a zone; NaT where `unreadable` or `ambiguous`.
        unreadable: rows that hold no ISO 8601 stamp, or a moment that the zone's clocks skip or show twice.
        ambiguous: rows without an offset in a column where others have one.
        offset: the offset each row states, "" where none.
    """

    ds: pd.Series
    unreadable: pd.Series
    ambiguous: pd.Series
    offset: pd.Series


def read_stamps(column: pd.Series, time_zone: str | None) -> Stamps:
    """Read a column of stamps.

    Args:
        column: datetime64 with or without a zone, or ISO 8601 text with or without offsets.
        time_zone: zone of the stamps without an offset; None takes them as UTC, but not beside stamps that state one.

    Raises:
        SeriesError: a column of numbers, or an unknown zone.
    """
    if isinstance(column.dtype, pd.DatetimeTZDtype):
        column, offset = column.dt.tz_convert("UTC").dt.tz_localize(None), "+00:00"
        return _stamps(column, column, pd.Series(offset, column.index))
    none = pd.Series("", column.index)
    if pd.api.types.is_datetime64_dtype(column.dtype):
        return _stamps(column, _localised(column, time_zone), none)
    if pd.api.types.is_numeric_dtype(column.dtype) and column.notna().any():
        raise SeriesError(
            f"column {column.name!r} holds numbers such as {column.dropna().iloc[0]}, and their unit is not stated; "
            "convert them first: pandas.to_datetime(column, unit='s', utc=True)"
        )
    # isoformat through str: datetime objects keep their offset.
    text = column.map(str, na_action="ignore").astype("str")
    offset = text.str.extract(_OFFSET, expand=False).fillna("")
    stated = offset != ""
    # One zone for all, so that the parser takes mixed offsets; each then stands for the moment it states.
    parsed = pd.to_datetime(text, format="ISO8601", utc=True, errors="coerce").dt.tz_localize(None)
    naive = parsed.where(~stated)
    ds = parsed.where(stated, _localised(naive, time_zone))
    if time_zone is None and stated.any():
        return _stamps(column, ds.where(stated | parsed.isna()), offset, ambiguous=~stated & parsed.notna())
    return _stamps(column, ds, offset)


def _stamps(column: pd.Series, ds: pd.Series, offset: pd.Series, ambiguous: pd.Series | None = None) -> Stamps:
    if ambiguous is None:
        ambiguous = pd.Series(False, column.index)
    # Nanoseconds hold the years 1678 to 2261; a stamp beyond them is a mistake of some clock.
    ds = ds.where(~ambiguous & ds.between(pd.Timestamp.min, pd.Timestamp.max)).astype("datetime64[ns]")
    return Stamps(ds, ds.isna() & ~ambiguous, ambiguous, offset)


def _localised(naive: pd.Series, time_zone: str | None) -> pd.Series:
    """UTC without a zone; NaT for moments that the zone's clocks skip or show twice."""
    if time_zone is None:
        return naive
    try:
        aware = naive.dt.tz_localize(time_zone, ambiguous="NaT", nonexistent="NaT")
    except (KeyError, ValueError) as error:
        raise SeriesError(f"time_zone {time_zone!r} is unknown ({error}); write 'Europe/Paris' or 'UTC'") from None
    return aware.dt.tz_convert("UTC").dt.tz_localize(None)
