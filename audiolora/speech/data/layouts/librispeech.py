"""LibriSpeech: SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt beside the FLAC files it names (https://www.openslr.org/12).

The folder given may be a chapter, a speaker, a part (`train-clean-100`) or hold parts.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from audiolora.speech.data.layouts.parts import part_of_split
from audiolora.speech.data.rows import AUDIO_SUFFIXES, DataError, Row, RowSet, read_text

_SUFFIX = ".trans.txt"
_DEPTH = 4  # LibriSpeech/PART/SPEAKER/CHAPTER


def is_librispeech(folder: Path) -> bool:
    """Whether there are LibriSpeech's transcripts in a folder or up to four folders below it."""
    return any(next(folder.glob("*/" * depth + "*" + _SUFFIX), None) for depth in range(_DEPTH + 1))


def librispeech(folder: Path) -> list[RowSet]:
    """The rows of a folder, a set a part.

    Raises:
        DataError: no transcripts there.

    >>> [rows.part for rows in librispeech(Path("LibriSpeech"))]  # doctest: +SKIP
    ['dev', 'test', 'train']
    """
    if not is_librispeech(folder):
        raise DataError(f"{folder}: no *{_SUFFIX} in it, or up to {_DEPTH} folders below it")
    by_part: dict[str | None, list[Row | str]] = {}
    for place, below, files in os.walk(folder):
        below.sort()
        relative = Path(place).relative_to(folder)
        parts = (part_of_split(name) for name in relative.parts)
        by_part.setdefault(next(filter(None, parts), None), []).extend(_chapter(Path(place), relative, sorted(files)))
    return [RowSet(folder.name, rows, folder, ("audio", "text"), part) for part, rows in by_part.items() if rows]


def _chapter(place: Path, relative: Path, files: list[str]) -> Iterator[Row | str]:
    clips = {Path(name).stem: name for name in files if Path(name).suffix.lower() in AUDIO_SUFFIXES}
    for name in files:
        if not name.endswith(_SUFFIX):
            continue
        for number, line in enumerate(read_text(place / name).split("\n"), start=1):
            if not line.strip():
                continue
            where = f"{(relative / name).as_posix()} row {number}"
            identity, *text = line.split(maxsplit=1)
            if identity not in clips:
                yield f"{where}: no audio file {identity}.flac beside it; fetch it, or remove the line"
                continue
            row = {"audio": (relative / clips.pop(identity)).as_posix(), "text": "".join(text), "id": identity}
            yield where, {**row, "speaker": identity.partition("-")[0]}
    for name in clips.values():
        yield f"{(relative / name).as_posix()}: no line in a {_SUFFIX} beside it; add what is said, or remove the file"
