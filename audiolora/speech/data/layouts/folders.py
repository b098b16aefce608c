"""Folders: a `metadata.csv` or `metadata.jsonl` over audio files, manifests named after parts, or audio with texts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from audiolora.speech.data.layouts.common_voice import is_list
from audiolora.speech.data.layouts.parts import part_of
from audiolora.speech.data.rows import AUDIO_SUFFIXES, DataError, Row, RowSet, manifest_rows, read_text

_METADATA = ("metadata.jsonl", "metadata.csv", "metadata.tsv")
_MANIFESTS = (".jsonl", ".csv", ".tsv")


def is_manifest(path: Path) -> bool:
    """Whether a file is named like a manifest."""
    return path.suffix.lower() in (*_MANIFESTS, ".json")


def manifest(path: Path) -> list[RowSet]:
    """The rows of a manifest; relative paths are below its folder."""
    return [RowSet(path.name, manifest_rows(path), path.parent)]


def has_metadata(folder: Path) -> bool:
    """Whether a folder, or each of its parts, has its transcripts in a metadata file, as `datasets`' audiofolder."""
    return bool(_metadata(folder))


def metadata(folder: Path) -> list[RowSet]:
    """The rows of its metadata files."""
    sets = [(path, None if path.parent == folder else part_of(path.parent.name)) for path in _metadata(folder)]
    if not sets:
        raise DataError(f"{folder}: no {', '.join(_METADATA)} there")
    named = [(path.relative_to(folder).as_posix(), path, part) for path, part in sets]
    return [RowSet(called, manifest_rows(path, called), path.parent, None, part) for called, path, part in named]


def _metadata(folder: Path) -> list[Path]:
    own = [folder / name for name in _METADATA if (folder / name).is_file()][:1]
    if own:
        return own
    parts = [below for below in sorted(folder.iterdir()) if part_of(below.name) and below.is_dir()]
    return [next(path for name in _METADATA if (path := below / name).is_file()) for below in parts if _has_own(below)]


def _has_own(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _METADATA)


def has_part_manifests(folder: Path) -> bool:
    """Whether a folder has manifests that are named after parts: `train.jsonl`, `test.csv`."""
    return bool(_part_manifests(folder))


def part_manifests(folder: Path) -> list[RowSet]:
    """The rows of its manifests that are named after parts."""
    found = _part_manifests(folder)
    if not found:
        raise DataError(f"{folder}: no train.jsonl (.csv, .tsv) and the like there")
    return [RowSet(path.name, manifest_rows(path), folder, None, part_of(path.stem)) for path in found]


def _part_manifests(folder: Path) -> list[Path]:
    named = (path for path in sorted(folder.iterdir()) if path.suffix in _MANIFESTS and part_of(path.stem))
    return [path for path in named if not is_list(path)]


def has_audio(folder: Path) -> bool:
    """Whether there is an audio file anywhere below a folder."""
    return any(_is_audio(name) for _, _, files in os.walk(folder) for name in files)


def audio_with_texts(folder: Path) -> list[RowSet]:
    """Each audio file below a folder with the `.txt` beside it, by path; folders `train`, `dev`, `test` are parts.

    Raises:
        DataError: no audio there.
    """
    clips = sorted(Path(place, name) for place, _, files in os.walk(folder) for name in files if _is_audio(name))
    if not clips:
        raise DataError(f"{folder}: holds no audio ({', '.join(sorted(AUDIO_SUFFIXES))})")
    by_part: dict[str | None, list[Row | str]] = {}
    for clip in clips:
        relative = clip.relative_to(folder)
        part = part_of(relative.parts[0]) if len(relative.parts) > 1 else None
        by_part.setdefault(part, []).extend(_row(folder, clip, relative.as_posix()))
    return [RowSet(folder.name, rows, folder, ("audio", "text"), part) for part, rows in by_part.items()]


def _is_audio(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in AUDIO_SUFFIXES


def _row(folder: Path, clip: Path, written: str) -> Iterator[Row | str]:
    where, transcript = f"{folder.name}/{written}", clip.with_suffix(".txt")
    try:
        yield where, {"audio": written, "text": read_text(transcript)}
    except FileNotFoundError:
        yield f"{where}: no transcript beside it; write what is said into {transcript.name}"
    except (DataError, OSError) as error:
        yield f"{where}: {error}"
