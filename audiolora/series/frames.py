"""Sensor histories into the long form: columns unique_id, ds, y and covariates, as Nixtla's libraries have it.

Nothing is filled and nothing is dropped. What is wrong with columns is one error; what is wrong with rows is one error
by device and line, or, with `errors="report"`, is kept with the frame for `checks.check` to report.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from audiolora.series.order import order_findings
from audiolora.series.problems import SeriesError, finding, listing, note
from audiolora.series.stamps import Stamps, read_stamps

Layout = Literal["auto", "long", "wide"]
_PARQUET = (".parquet", ".pq")
_UNREADABLE = (pd.errors.ParserError, pd.errors.ParserWarning, pd.errors.EmptyDataError)


@dataclass(frozen=True)
class _Source:
    """Rows as written, before anything is converted; `place` says where a row stands (a line of a file, or a row)."""

    name: str
    rows: pd.DataFrame
    place: str


@dataclass(frozen=True)
class _Names:
    id_col: str
    time_col: str
    target_col: str


def read(
    source: str | os.PathLike[str] | pd.DataFrame,
    *,
    layout: Layout = "auto",
    id_col: str = "unique_id",
    time_col: str = "ds",
    target_col: str = "y",
    time_zone: str | None = None,
    covariates: Sequence[str] | None = None,
    errors: Literal["raise", "report"] = "raise",
) -> pd.DataFrame:
    """Read sensor histories into the long form.

    Args:
        source: a CSV or Parquet file (`.csv`, `.csv.gz`, `.parquet`), or a DataFrame, which is not changed.
        layout: `"long"`: a row a device and stamp; `"wide"`: a column of stamps and one column a device; `"auto"`: long
            if there is a column `id_col`, wide if there is none and no `target_col` either.
        id_col: column with the device's id (long).
        time_col: column with the stamps: datetime64 or ISO 8601 text. Those with an offset or a zone become UTC.
        target_col: column with the measured values (long).
        time_zone: zone of stamps without an offset, e.g. `"Europe/Paris"`; None takes them as UTC. Where some stamps of
            a column state an offset and some do not, nothing is guessed: without `time_zone` the latter are problems.
        covariates: further columns to read (long); None for all.
        errors: what to do about rows with a problem (no readable stamp, a value that is no number, no device, two
            devices under one id): `"raise"` one error that lists them, or `"report"`: the value becomes NaN, the stamp
            NaT, and `checks.check` reports them.

    Returns: unique_id (str), ds (datetime64[ns], UTC without a zone), y (float64), covariates (float64), sorted by
    (unique_id, ds).

    Raises:
        SeriesError: the source cannot be read, its columns are not those named, or rows have problems.
        TypeError: a source of another type.

    Example:
        >>> wide = pd.DataFrame({"ds": ["2024-01-01T00:00+01:00"], "pump 1": [2.5], "pump 2": [0.5]})
        >>> read(wide)
          unique_id                  ds    y
        0    pump 1 2023-12-31 23:00:00  2.5
        1    pump 2 2023-12-31 23:00:00  0.5
    """
    if errors not in ("raise", "report"):
        raise ValueError(f"errors must be 'raise' or 'report', got {errors!r}")
    names = _Names(id_col, time_col, target_col)
    loaded = _load(source, names)
    if _chosen(layout, loaded, names) == "wide":
        long, found = _from_wide(loaded, names, time_zone, covariates)
    else:
        long, found = _from_long(loaded, names, time_zone, covariates)
    if errors == "raise" and (bad := [one for one in found if one["problem"] not in ("unsorted", "several_offsets")]):
        lines = [f"{one['unique_id']}, {one['column']}: {one['detail']}" for one in bad]
        raise SeriesError(listing(f"{loaded.name}: {len(bad)} problems (errors='report' reads the rest)", lines))
    long = long.sort_values(["unique_id", "ds"], kind="stable", ignore_index=True)
    note(long, found)
    return long


def _load(source: Any, names: _Names) -> _Source:
    if isinstance(source, pd.DataFrame):
        levels = [name for name in source.index.names if name is not None]
        rows = source.reset_index(levels) if levels else source
        return _Source("the frame", rows.reset_index(drop=True), "row")
    if not isinstance(source, (str, os.PathLike)):
        raise TypeError(f"source must be a path or a pandas.DataFrame, got {type(source).__name__}")
    path = Path(source).expanduser()
    if not path.is_file():
        raise SeriesError(f"{path}: no such file")
    suffixes = [suffix.lower() for suffix in path.suffixes]
    try:
        if suffixes and suffixes[-1] in _PARQUET:
            return _load_parquet(path)
        if ".csv" in suffixes:
            return _load_csv(path, names)
    except (*_UNREADABLE, UnicodeDecodeError, OSError) as error:
        raise SeriesError(f"{path}: cannot be read: {error}") from error
    raise SeriesError(f"{path}: must end in .csv, .csv.gz or .parquet; read it with pandas and pass the frame")


def _load_parquet(path: Path) -> _Source:
    import pyarrow

    try:
        return _load_frame(path, pd.read_parquet(path))
    except pyarrow.ArrowException as error:
        raise SeriesError(f"{path}: cannot be read as Parquet: {error}") from error


def _load_frame(path: Path, rows: pd.DataFrame) -> _Source:
    levels = [name for name in rows.index.names if name is not None]
    return _Source(path.name, (rows.reset_index(levels) if levels else rows).reset_index(drop=True), "row")


def _load_csv(path: Path, names: _Names) -> _Source:
    # The header by itself: pandas would rename the second of two equal names.
    header = pd.read_csv(path, header=None, nrows=1, dtype=str, encoding="utf-8-sig", keep_default_na=False)
    columns = header.iloc[0].tolist()
    # By position, since names may be twice; ids and stamps as written, so that device 007 and one called NA stay so.
    text = {place for place, name in enumerate(columns) if name in (names.id_col, names.time_col)}
    missing = ["", "NA", "N/A", "NaN", "nan", "NULL", "null", "None"]
    with warnings.catch_warnings():
        # Of a row with more fields than the header pandas would drop the last, with a warning.
        warnings.simplefilter("error", pd.errors.ParserWarning)
        rows = pd.read_csv(
            path, header=None, skiprows=1, names=range(len(columns)), index_col=False, encoding="utf-8-sig",
            low_memory=False, dtype=dict.fromkeys(text, str), skip_blank_lines=False, keep_default_na=False,
            na_values={place: [""] if place in text else missing for place in range(len(columns))},
        )  # fmt: skip
    rows = rows[~rows.isna().all(axis=1)]  # blank lines, kept until here so that lines are counted right
    rows.columns, rows.index = pd.Index(columns), rows.index + 2
    return _Source(path.name, rows, "line")


def _chosen(layout: str, loaded: _Source, names: _Names) -> str:
    if layout not in ("auto", "long", "wide"):
        raise ValueError(f"layout must be 'auto', 'long' or 'wide', got {layout!r}")
    columns = list(loaded.rows.columns)
    has_id, has_target = names.id_col in columns, names.target_col in columns
    if layout == "auto":
        if has_target and not has_id:
            raise SeriesError(
                f"{_found(loaded)}; there is a {names.target_col!r} and no {names.id_col!r}: name the column of the "
                "devices by id_col=, or say layout='wide' if each column is a device"
            )
        layout = "long" if has_id else "wide"
    wanted = [names.time_col] if layout == "wide" else [names.id_col, names.time_col, names.target_col]
    missing = [name for name in wanted if name not in columns]
    # Of two devices with one id the check tells; of two columns of stamps nobody could.
    twice = [
        name for name in dict.fromkeys(columns) if columns.count(name) > 1 and (layout == "long" or name in wanted)
    ]
    problems = [f"no column {name!r}; name yours by {_argument(name, names)}=…" for name in missing]
    problems += [f"column {name!r} is there {columns.count(name)} times; keep one" for name in twice]
    if layout == "wide" and not missing and len(columns) < 2:
        problems.append(f"no column beside {names.time_col!r}: a wide table has one column a device")
    if problems:
        raise SeriesError(listing(f"{_found(loaded)}; a {layout} table needs {', '.join(map(repr, wanted))}", problems))
    return layout


def _found(loaded: _Source) -> str:
    return f"{loaded.name} has the columns {', '.join(map(repr, loaded.rows.columns)) or 'none'}"


def _argument(name: str, names: _Names) -> str:
    return {names.id_col: "id_col", names.time_col: "time_col", names.target_col: "target_col"}[name]


def _from_long(
    loaded: _Source, names: _Names, time_zone: str | None, covariates: Sequence[str] | None
) -> tuple[pd.DataFrame, list[dict[str, Any]]]:
    rows = loaded.rows
    keys = [names.id_col, names.time_col, names.target_col]
    further = [name for name in rows.columns if name not in keys] if covariates is None else list(covariates)
    if lacking := [name for name in further if name not in rows.columns]:
        raise SeriesError(f"{_found(loaded)}; no covariates {', '.join(map(repr, lacking))}")
    taken = {name for name in further if name in ("unique_id", "ds", "y")}
    if taken:
        raise SeriesError(f"{_found(loaded)}; rename {', '.join(sorted(taken))}, or leave it out by covariates=[…]")
    ids = rows[names.id_col].map(_id_text, na_action="ignore").astype("str")
    nameless = ids.isna() | (ids == "")
    found = []
    if nameless.any():
        first = f"{loaded.place} {nameless.idxmax()}"
        detail = f"{nameless.sum()} rows without a device, the first at {first}"
        found.append(finding("(none)", names.id_col, "no_id", nameless.sum(), first, detail))
    ids = ids.where(~nameless, "(none)")
    stamps = read_stamps(rows[names.time_col], time_zone)
    found += _stamp_findings(ids, stamps, rows[names.time_col], loaded.place)
    columns = {"unique_id": ids, "ds": stamps.ds}
    for name in [names.target_col, *further]:
        called = "y" if name == names.target_col else str(name)
        columns[called], wrong = _numbers(rows[name])
        found += _by_device(ids, wrong, loaded.place, called, "not_a_number", rows[name])
    found += order_findings(ids, stamps.ds, loaded.place)
    return pd.DataFrame(columns), found


def _from_wide(
    loaded: _Source, names: _Names, time_zone: str | None, covariates: Sequence[str] | None
) -> tuple[pd.DataFrame, list[dict[str, Any]]]:
    if covariates:
        raise SeriesError(f"covariates={list(covariates)!r}: a wide table has devices alone; write it in long form")
    rows = loaded.rows
    stamps = read_stamps(rows[names.time_col], time_zone)
    devices = [place for place, name in enumerate(rows.columns) if name != names.time_col]
    # All devices share the stamps: what is wrong with them is told once.
    everyone = pd.Series("(all devices)", rows.index)
    found = _stamp_findings(everyone, stamps, rows[names.time_col], loaded.place)
    called = [str(rows.columns[place]) for place in devices]
    for name in dict.fromkeys(called):
        if called.count(name) > 1:
            detail = f"{called.count(name)} columns are called {name!r}"
            found.append(finding(name, "unique_id", "duplicate_id", called.count(name), "header", detail))
    parts = []
    for name, place in zip(called, devices, strict=True):
        values, wrong = _numbers(rows.iloc[:, place])
        ids = pd.Series(name, rows.index, dtype="str")
        found += _by_device(ids, wrong, loaded.place, "y", "not_a_number", rows.iloc[:, place])
        parts.append(pd.DataFrame({"unique_id": ids, "ds": stamps.ds, "y": values}))
    found += [{**one, "unique_id": "(all devices)"} for one in order_findings(everyone, stamps.ds, loaded.place)]
    return pd.concat(parts), found


def _stamp_findings(ids: pd.Series, stamps: Stamps, written: pd.Series, place: str) -> list[dict[str, Any]]:
    found = _by_device(ids, stamps.unreadable, place, "ds", "no_stamp", written)
    found += _by_device(ids, stamps.ambiguous, place, "ds", "mixed_zones", written)
    stated = stamps.offset[stamps.offset != ""]
    for name, offsets in stated.groupby(ids, sort=False):
        if offsets.nunique() > 1:
            detail = f"offsets {', '.join(sorted(offsets.unique()))}: each stamp became UTC by its own"
            first = f"{place} {offsets.ne(offsets.iloc[0]).idxmax()}"
            found.append(finding(str(name), "ds", "several_offsets", offsets.nunique(), first, detail))
    return found


_WHAT = {
    "no_stamp": "no ISO 8601 stamp of the years 1678 to 2261, or a moment that the zone's clocks skip or show twice",
    "mixed_zones": "stamps without an offset in a column where others state one",
    "not_a_number": "values that are no numbers",
}


def _by_device(
    ids: pd.Series, wrong: pd.Series, place: str, column: str, problem: str, written: pd.Series
) -> list[dict[str, Any]]:
    """One finding a device: how many of its rows are wrong, where the first stands and what is written there."""
    found = []
    for name, index in ids[wrong].groupby(ids[wrong], sort=False).groups.items():
        first, text = f"{place} {index[0]}", written[index[0]]
        shown = "nothing" if pd.isna(text) else repr(text)
        detail = f"{_WHAT[problem]}: {len(index)}, the first at {first} ({shown})"
        found.append(finding(str(name), column, problem, len(index), first, detail))
    return found


def _numbers(column: pd.Series) -> tuple[pd.Series, pd.Series]:
    """The column as float64, and where something is written that is no number."""
    if pd.api.types.is_numeric_dtype(column.dtype):
        numbers = column.astype("float64") if not pd.api.types.is_complex_dtype(column.dtype) else column * np.nan
    else:
        numbers = pd.to_numeric(column, errors="coerce").astype("float64")
    return numbers, numbers.isna() & column.notna()


def _id_text(value: Any) -> str:
    # A column of whole numbers with one missing is read as floats: device 7 is not called 7.0.
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()
