"""Tar shards as WebDataset has them: KEY.wav (or .flac, .mp3, …) with KEY.txt or KEY.json (text, speaker, …) beside it.

A shard is gone through once. What is in it, and where, is kept as an index beside it (`NAME.tar.index.json`; in the
cache folder where it cannot be written there), good for as long as the shard's size and time of change are the same.
Clips are then read by their place in the shard. Key and suffix part at the first dot of the name, as webdataset does.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from audiolora.files import write_text
from audiolora.packages import cache_dir
from audiolora.speech.data.layouts.parts import part_of_split
from audiolora.speech.data.rows import AUDIO_SUFFIXES, DataError, Row, RowSet
from audiolora.speech.data.sources import TarMember

_VERSION = 1  # of the index
_COLUMNS = ("audio", "text")
_TEXT_KEYS = ("text", "transcript", "sentence", "transcription")
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_NAME = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)")
_BRACES = re.compile(r"\{([^{}]*)\}")

logger = logging.getLogger(__name__)


def is_shard(path: Path) -> bool:
    """Whether a file is named like a tar, compressed ones too (which `tars` refuses)."""
    return path.name.endswith((".tar", *_COMPRESSED))


def has_shards(folder: Path) -> bool:
    """Whether there are tars in a folder."""
    return any(is_shard(path) for path in folder.iterdir())


def shards_below(folder: Path) -> list[RowSet]:
    """The rows of every shard of a folder, see `tars`."""
    return tars(sorted(path for path in folder.iterdir() if is_shard(path)))


def expand_braces(pattern: str) -> list[str]:
    """The names that a pattern stands for, as a shell would write them out.

    >>> expand_braces("shards-{008..010}.tar"), expand_braces("{a,b}.tar")
    (['shards-008.tar', 'shards-009.tar', 'shards-010.tar'], ['a.tar', 'b.tar'])
    """
    found = _BRACES.search(pattern)
    if found is None:
        return [pattern]
    if numbers := re.fullmatch(r"(\d+)\.\.(\d+)", found[1]):
        first, last, width = int(numbers[1]), int(numbers[2]), len(numbers[1])
        if last < first:
            raise DataError(f"{pattern}: {{{found[1]}}} runs backwards; write the smaller number first")
        inner = [f"{number:0{width}d}" for number in range(first, last + 1)]
    else:
        inner = found[1].split(",")
    names = (expand_braces(pattern[: found.start()] + one + pattern[found.end() :]) for one in inner)
    return list(dict.fromkeys(name for several in names for name in several))  # inner braces stand in each alternative


def tars(paths: Iterable[Path]) -> list[RowSet]:
    """The rows of tar shards; a shard's part is told by its name: `train-000.tar`.

    Raises:
        DataError: no shards, or shards that are missing or compressed (all of them in one error).

    >>> tars([Path("train-000.tar"), Path("dev-000.tar")])[1].part  # doctest: +SKIP
    'dev'
    """
    paths = list(paths)
    if faults := [fault for path in paths if (fault := _fault(path))]:
        raise DataError("\n  ".join(["tar shards that cannot be read:", *faults]), faults)
    by_part: dict[str | None, list[Path]] = {}
    for path in paths:
        by_part.setdefault(part_of_split(path.name), []).append(path)
    return [
        RowSet(
            several[0].absolute().parent.name, [row for path in several for row in _rows(path)], Path(), _COLUMNS, part
        )
        for part, several in by_part.items()
    ]


def _fault(path: Path) -> str | None:
    if not path.is_file():
        return f"{path}: no such file"
    with open(path, "rb") as file:
        start = file.read(6)
    if start[:2] == b"\x1f\x8b" or start[:3] == b"BZh" or start == b"\xfd7zXZ\x00" or start[:4] == b"\x28\xb5\x2f\xfd":
        return f"{path}: is compressed, and clips are read out of the middle of it; unpack it to a plain .tar"
    return None


def _rows(path: Path) -> Iterator[Row | str]:
    """The rows of one shard."""
    samples, faults = _index(path)
    yield from (f"{path.name}: {fault}" for fault in faults)
    for key, sample in samples.items():
        where = f"{path.name} key {key}"
        if fault := sample.get("fault"):
            yield f"{where}: {fault}"
        else:
            name, offset, size = sample["audio"]
            yield where, {"id": key, **sample["columns"], "audio": TarMember(path, name, offset, size)}


def _index(path: Path) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """What a shard holds, {key: {"audio": (name, offset, size), "columns": …} or {"fault": …}}, and its own faults."""
    now = path.stat()
    of = {"version": _VERSION, "size": now.st_size, "changed_ns": now.st_mtime_ns}
    digest = hashlib.sha256(str(path.absolute()).encode()).hexdigest()[:16]
    places = (path.with_name(f"{path.name}.index.json"), cache_dir() / "tar_indices" / f"{digest}.json")
    for place in places:
        try:
            kept = json.loads(place.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # none, or none of ours: it is made anew
            continue
        if isinstance(kept, dict) and kept.get("of") == of:
            return kept["samples"], kept["faults"]
    samples, faults = _scan(path)
    text = json.dumps({"of": of, "samples": samples, "faults": faults})  # ASCII: names may not be UTF-8
    for place in places:
        try:
            write_text(place, text)
            break
        except OSError as error:
            logger.info("%s: no index could be written there (%s)", place, error)
    return samples, faults


def _scan(path: Path) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Go through a shard once; see `_index`."""
    members: dict[str, dict[str, Any]] = {}
    faults = []
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                _note(members, tar, member)
                tar.members = []  # type: ignore[attr-defined]  # it keeps every header it has read
    except (tarfile.TarError, OSError) as error:
        faults.append(f"breaks off or is no tar ({error}); {len(members)} clips before that were found; fetch it again")
    return {key: _sample(suffixes) for key, suffixes in members.items()}, faults


def _note(members: dict[str, dict[str, Any]], tar: tarfile.TarFile, member: tarfile.TarInfo) -> None:
    """Put a member down under its key and suffix: audio by its place, texts by their content."""
    parts = _NAME.fullmatch(member.name.removeprefix("./"))
    if parts is None or not member.isreg() or member.issparse():
        return
    key, suffix = parts[1], parts[2].lower()
    at = members.setdefault(key, {})
    if suffix in at:
        at["fault"] = f"holds {member.name} twice; give each clip a key of its own"
    elif _is_audio(suffix):
        at[suffix] = (member.name, member.offset_data, member.size)
    elif suffix in ("txt", "json"):
        file = tar.extractfile(member)
        at[suffix] = b"" if file is None else file.read()


def _is_audio(suffix: str) -> bool:
    return f".{suffix.rpartition('.')[2]}" in AUDIO_SUFFIXES


def _sample(members: dict[str, Any]) -> dict[str, Any]:
    if "fault" in members:
        return {"fault": members["fault"]}
    sounds = [suffix for suffix in members if _is_audio(suffix)]
    if len(sounds) != 1:
        names = ", ".join(sounds) or ", ".join(members) or "nothing that this reads"
        return {"fault": f"a clip has one audio file beside its text, found {names}"}
    columns: dict[str, Any] = {}
    try:
        if "json" in members:
            columns = json.loads(members["json"].decode("utf-8-sig"))
            if not isinstance(columns, dict):
                return {"fault": f".json must hold an object, got {str(columns)[:60]}"}
            text = next((columns[key] for key in _TEXT_KEYS if key in columns), None)
            columns = {key: columns[key] for key in columns if isinstance(columns[key], (str, int, float))}
            columns |= {} if text is None else {"text": text}
        if "txt" in members:
            columns["text"] = members["txt"].decode("utf-8-sig")
    except ValueError as error:
        return {"fault": f"its .txt or .json is not UTF-8 text or not JSON ({error})"}
    if "text" not in columns:
        return {"fault": "no transcript; put what is said into a .txt beside it, or under 'text' in a .json"}
    return {"audio": members[sounds[0]], "columns": columns}
