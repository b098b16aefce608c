"""Common Voice: a folder with `clips/` and `train.tsv`, `dev.tsv`, `test.tsv` (https://commonvoice.mozilla.org)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from audiolora.speech.data.rows import DataError, RowSet, manifest_rows

_COLUMNS = ("path", "sentence")
_PARTS = ("train", "dev", "test")


def is_common_voice(folder: Path) -> bool:
    """Whether a folder is one language of Common Voice."""
    return (folder / "clips").is_dir() and next(_lists(folder), None) is not None


def common_voice(folder: Path, split: str | None = None) -> list[RowSet]:
    """The rows of its parts, or of one list, such as `validated`.

    Raises:
        DataError: no such list.

    >>> [rows.part for rows in common_voice(Path("cv-corpus-21.0/it"))]  # doctest: +SKIP
    ['train', 'dev', 'test']
    """
    there = {path.stem: path for path in _lists(folder)}
    chosen = [split] if split else [part for part in _PARTS if part in there]
    if not chosen or not set(chosen) <= set(there):
        raise DataError(
            f"{folder}: no list {split or 'train'}.tsv; choose one of "
            + (", ".join(f"{folder}:{name}" for name in sorted(there)) or "those of Common Voice, there is none")
        )
    return [_rows(there[name], None if split else name) for name in chosen]


def is_list(path: Path) -> bool:
    """Whether a file is one of Common Voice's lists, whose paths are relative to `clips/`."""
    return path.suffix == ".tsv" and (path.parent / "clips").is_dir() and path in _lists(path.parent)


def common_voice_list(path: Path) -> list[RowSet]:
    """The rows of one list, by its file."""
    return [_rows(path, None)]


def _lists(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.glob("*.tsv")):
        with open(path, encoding="utf-8", errors="replace") as file:
            if {"client_id", *_COLUMNS} <= set(file.readline().rstrip("\r\n").split("\t")):
                yield path


def _rows(path: Path, part: str | None) -> RowSet:
    return RowSet(path.name, manifest_rows(path), path.parent / "clips", _COLUMNS, part)
