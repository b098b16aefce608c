"""Rows of speech manifests as they are written: JSONL, CSV, TSV.

A reader yields a row as (where it was read, its columns), or, for what is no row, a string that tells the problem.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

AUDIO_SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".aif", ".au"})

Row = tuple[str, Mapping[Any, Any]]
"""Where a row was read, and its columns; a missing field of a table is None, surplus ones stand under the key None."""


@dataclass(frozen=True)
class RowSet:
    """The rows of one file or folder.

    Args:
        called: what errors call it.
        rows: its rows, and problems its reader met.
        root: what relative audio paths are relative to.
        columns: the audio and the text column, where the layout fixes them; else the caller names them.
        part: train, dev or test, where the data says so.
    """

    called: str
    rows: Iterable[Row | str]
    root: Path
    columns: tuple[str, str] | None = None
    part: str | None = None


class DataError(ValueError):
    """Speech data that cannot be used; the message lists problems by file and row.

    Args:
        message: for people; of many problems it spells out the first.
        problems: every one of them.
        kind: of one row's fault, a key of `findings.KINDS`.
    """

    def __init__(self, message: str, problems: Iterable[str] = (), *, kind: str = "row") -> None:
        super().__init__(message)
        self.problems, self.kind = tuple(problems), kind


def manifest_rows(path: Path, called: str | None = None) -> Iterable[Row | str]:
    """Rows of a manifest: counted as a spreadsheet does for CSV and TSV (the header is row 1), by lines for JSONL.

    Args:
        path: the manifest.
        called: what its rows call it; its name by default.
    """
    readers = {".jsonl": _json_rows, ".json": _json_rows, ".csv": _table_rows, ".tsv": _table_rows}
    if path.suffix.lower() not in readers:
        raise DataError(f"{path}: not a manifest this reads; it must end in {', '.join(readers)}")
    return readers[path.suffix.lower()](read_text(path), path, called or path.name)


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, without a byte order mark.

    Raises:
        DataError: it is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from error


def _json_rows(text: str, path: Path, called: str) -> Iterator[Row | str]:
    for number, line in enumerate(text.split("\n"), start=1):
        where = f"{called} row {number}"
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            yield f"{where}: not JSON ({error.msg} at column {error.colno}); each line must be one object"
            continue
        yield (where, record) if isinstance(record, dict) else f"{where}: must be an object, got {line.strip()[:60]}"


def _table_rows(text: str, path: Path, called: str) -> Iterator[Row | str]:
    # Tab-separated manifests (Common Voice) use quotes as plain characters; read as CSV, one stray quote swallows rows.
    tabs = path.suffix.lower() == ".tsv"
    table = csv.reader(
        io.StringIO(text, newline=""),
        delimiter="\t" if tabs else ",",
        quoting=csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL,
    )
    header: list[str] = []
    for number, fields in enumerate(_table_lines(table), start=1):
        where = f"{called} row {number}"
        if isinstance(fields, csv.Error):
            yield f"{where}: {fields}; is a quote not closed before it?"
        elif fields and not header:
            header = fields
        elif fields:
            record: dict[str | None, str | list[str] | None] = dict(zip_longest(header, fields[: len(header)]))
            yield where, record | ({None: fields[len(header) :]} if len(fields) > len(header) else {})


def _table_lines(table: Iterator[list[str]]) -> Iterator[list[str] | csv.Error]:
    """The fields of every row, none of an empty one; what is behind a row that cannot be read is read all the same."""
    while True:
        try:
            yield next(table)
        except StopIteration:
            return
        except csv.Error as error:
            yield error
