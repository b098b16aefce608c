"""Clips in the cells of tables: Arrow files (what `datasets` keeps) and Parquet files; their bytes stay where they are.

A column of sound is a struct with `bytes` and `path`, as `datasets.Audio` stores it undecoded, or plain binary.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from audiolora.speech.data.rows import DataError, Row
from audiolora.speech.data.sources import AudioError, Source

_BATCH = 1000  # rows turned into Python at once
_LARGE = 64 << 20  # bytes of a row group that are a lot to read for one clip
_Stamp = tuple[int, int]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ArrowCell(Source):
    """A clip in an Arrow file, which is mapped into memory, not read.

    Args:
        table: the file.
        row: from 0, in the file.
        column: with the clips.

    >>> str(ArrowCell(Path("data-00000-of-00001.arrow"), 7, "audio"))
    'data-00000-of-00001.arrow row 7'
    """

    table: Path
    row: int
    column: str

    @property
    def file(self) -> Path:
        """The Arrow file."""
        return self.table

    def read(self) -> bytes:
        """See `Source.read`."""
        try:
            return _content(_arrow(str(self.table), _stamp(self.table)).column(self.column)[self.row].as_py())
        except (OSError, ValueError, KeyError, IndexError) as error:  # what pyarrow raises
            raise AudioError(f"{self}: cannot be read ({error})") from error

    def __str__(self) -> str:
        return f"{self.table} row {self.row}"


@dataclass(frozen=True, slots=True)
class ParquetCell(Source):
    """A clip in a Parquet file; its row group's column is read, and the last two stay at hand.

    Args:
        table: the file.
        group: the row group, from 0.
        row: from 0, in its group.
        column: with the clips, or the leaf with their bytes: `audio.bytes`.
    """

    table: Path
    group: int
    row: int
    column: str

    @property
    def file(self) -> Path:
        """The Parquet file."""
        return self.table

    def read(self) -> bytes:
        """See `Source.read`."""
        try:
            return _content(_group(str(self.table), self.group, self.column, _stamp(self.table))[self.row].as_py())
        except (OSError, ValueError, KeyError, IndexError) as error:  # what pyarrow raises
            raise AudioError(f"{self}: cannot be read ({error})") from error

    def __str__(self) -> str:
        return f"{self.table} row {self.row} of group {self.group}"


def arrow_rows(files: Sequence[Path], called: str) -> Iterator[Row | str]:
    """The rows of Arrow files, one after the other.

    Raises:
        DataError: a file that is not Arrow.
    """
    first = 0
    for file in files:
        try:
            table = _arrow(str(file), _stamp(file))
        except (OSError, ValueError) as error:
            raise DataError(f"{file}: not an Arrow file ({error}); fetch or write it again") from error
        sounds = _sound_columns(table.schema)
        for at in range(0, table.num_rows, _BATCH):
            batch = table.slice(at, _BATCH)
            held = {name: _held(batch.column(name)) for name in sounds}
            paths = {name: _paths(batch.column(name)) for name in sounds}
            plain = batch.select(_plain_columns(table.schema)).to_pylist()
            cells = {name: _arrow_cells(file, at, name) for name in sounds}
            yield from _numbered(called, first + at, plain, held, paths, cells)
        first += table.num_rows


def parquet_rows(files: Sequence[Path], called: str) -> Iterator[Row | str]:
    """The rows of Parquet files, one after the other.

    Raises:
        DataError: a file that is not Parquet.
    """
    import pyarrow.parquet as pq

    first = 0
    for file in files:
        try:
            table = pq.ParquetFile(file)
        except (OSError, ValueError) as error:
            raise DataError(f"{file}: not a Parquet file ({error}); fetch or write it again") from error
        with table:
            schema = table.schema_arrow
            sounds = _sound_columns(schema)
            leaves = {name: f"{name}.bytes" if _is_struct(schema, name) else name for name in sounds}
            with_paths = [f"{name}.path" for name in sounds if _is_struct(schema, name)]
            _warn_if_large(table, file, list(leaves.values()))
            for group in range(table.num_row_groups):
                batch = table.read_row_group(group, columns=_plain_columns(schema) + with_paths)
                rows = batch.select([name for name in batch.column_names if name not in sounds]).to_pylist()
                rows = rows or [{} for _ in range(batch.num_rows)]
                held = {name: _held_in_group(table, group, leaf) for name, leaf in leaves.items()}
                paths = {name: _paths(batch.column(name)) if name in batch.column_names else None for name in sounds}
                cells = {name: _parquet_cells(file, group, leaf) for name, leaf in leaves.items()}
                yield from _numbered(called, first, rows, held, paths, cells)
                first += batch.num_rows


def _numbered(
    called: str,
    first: int,
    plain: list[dict[str, Any]],
    held: dict[str, list[bool]],
    paths: dict[str, list[str | None] | None],
    cells: dict[str, Callable[[int], Source]],
) -> Iterator[Row]:
    """Rows with a cell where bytes are held, else with the path that is written there."""
    for index, row in enumerate(plain):
        for name, cell in cells.items():
            written = None if (several := paths[name]) is None else several[index]
            row[name] = cell(index) if held[name][index] else written
            if held[name][index] and written:
                row.setdefault(PATH, written)
        yield f"{called} row {first + index}", row


PATH = "audio.path"
"""Column of a row of a table under which the path stands that a clip had before it was stored there."""


def named_rows(rows: Iterator[Row | str]) -> list[Row | str]:
    """Rows of tables with an id: the column `id`, else the stored path, whichever tells all rows apart, else the row.

    Public sets number sentences, not clips, under `id`, and call every clip `audio.wav`. Clips that are files of their
    own are called by their paths, as in a manifest.
    """
    several = list(rows)
    records = [row[1] for row in several if not isinstance(row, str)]
    if not any(isinstance(value, Source) for record in records[:1] for value in record.values()):
        return several
    for column in ("id", PATH):
        said = {record.get(column) for record in records}
        if len(said) == len(records) and not said & {None, ""}:
            break
    else:
        column = ""
    return [
        row if isinstance(row, str) else (row[0], {**row[1], "id": row[1].get(column, f"row-{number}")})
        for number, row in enumerate(several)
    ]


def n_rows(file: Path) -> int:
    """How many rows an Arrow file has."""
    return int(_arrow(str(file), _stamp(file)).num_rows)


def _arrow_cells(file: Path, first: int, column: str) -> Callable[[int], Source]:
    return lambda row: ArrowCell(file, first + row, column)


def _parquet_cells(file: Path, group: int, column: str) -> Callable[[int], Source]:
    return lambda row: ParquetCell(file, group, row, column)


def _is_struct(schema: Any, name: str) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_struct(schema.field(name).type))


def _sound_columns(schema: Any) -> list[str]:
    import pyarrow as pa

    def is_binary(kind: Any) -> bool:
        return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)

    def is_sound(kind: Any) -> bool:
        inside = {field.name: field.type for field in kind} if pa.types.is_struct(kind) else {"bytes": kind}
        return "bytes" in inside and is_binary(inside["bytes"])

    return [field.name for field in schema if is_sound(field.type)]


def _plain_columns(schema: Any) -> list[str]:
    """Text and numbers: lists (decoded samples, embeddings) would not fit into memory."""
    import pyarrow as pa

    sounds = _sound_columns(schema)
    return [field.name for field in schema if field.name not in sounds and not pa.types.is_nested(field.type)]


def _held(column: Any) -> list[bool]:
    """Whether bytes stand in each row of a column of sound, without touching them."""
    import pyarrow as pa
    import pyarrow.compute as pc

    found: list[bool] = pc.is_valid(
        pc.struct_field(column, "bytes") if pa.types.is_struct(column.type) else column
    ).to_pylist()
    return found


def _chunk(table: Any, group: int, leaf: str) -> Any:
    about = table.metadata.row_group(group)
    return next(about.column(i) for i in range(about.num_columns) if about.column(i).path_in_schema == leaf)


def _warn_if_large(table: Any, file: Path, leaves: Sequence[str]) -> None:
    chunks = (_chunk(table, group, leaf) for group in range(table.num_row_groups) for leaf in leaves)
    size = max((chunk.total_uncompressed_size for chunk in chunks), default=0)
    if size > _LARGE:
        logger.warning(
            "%s: has row groups of %.0f MiB of audio, and one is read for every clip; write them smaller "
            "(to_parquet(batch_size=100)), or let datasets unpack the folder once: hf:%s",
            file,
            size / (1 << 20),
            file.parent,
        )


def _held_in_group(table: Any, group: int, leaf: str) -> list[bool]:
    """As `_held`, by the row group's count of nulls; only where some are and some are not, they are looked at."""
    about, chunk = table.metadata.row_group(group), _chunk(table, group, leaf)
    missing = chunk.statistics.null_count if chunk.statistics is not None and chunk.statistics.has_null_count else None
    if missing in (0, about.num_rows):
        return [missing == 0] * about.num_rows
    return _held(table.read_row_group(group, columns=[leaf]).column(0))


def _paths(column: Any) -> list[str | None] | None:
    import pyarrow as pa
    import pyarrow.compute as pc

    if not pa.types.is_struct(column.type) or "path" not in {field.name for field in column.type}:
        return None
    paths: list[str | None] = pc.struct_field(column, "path").to_pylist()
    return paths


def _content(cell: Any) -> bytes:
    content = cell["bytes"] if isinstance(cell, dict) else cell
    if not isinstance(content, bytes):
        raise ValueError("no bytes stand there")
    return content


def _stamp(path: Path) -> _Stamp:
    now = os.stat(path)
    return now.st_size, now.st_mtime_ns


@lru_cache(maxsize=1024)
def _arrow(path: str, stamp: _Stamp) -> Any:
    """An Arrow file, of the streaming format that `datasets` writes or of the file format; one mapping a process."""
    import pyarrow as pa

    mapped = pa.memory_map(path)
    opened = pa.ipc.open_file(mapped) if mapped.read(6) == b"ARROW1" else None
    if opened is None:
        mapped.seek(0)
        opened = pa.ipc.open_stream(mapped)
    return opened.read_all()


@lru_cache(maxsize=2)
def _group(path: str, group: int, column: str, stamp: _Stamp) -> Any:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as table:
        return table.read_row_group(group, columns=[column], use_threads=False).column(0)
