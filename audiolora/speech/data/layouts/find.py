"""Which layout some data have: told by a prefix (`kaldi:DATA`), by the file's suffix, or by what lies in the folder."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from audiolora.speech.data.layouts import common_voice, folders, hub, kaldi, librispeech, saved, tars
from audiolora.speech.data.layouts.parts import part_of, part_of_split
from audiolora.speech.data.prompts import BUILTIN
from audiolora.speech.data.rows import DataError, RowSet


@dataclass(frozen=True)
class Layout:
    """A way that speech data lie on disk.

    Args:
        name: what a prefix calls it: `kaldi:DATA`.
        like: what it is told by, for people.
        fits: whether a file or folder is of this layout.
        read: its rows.
        splits: whether `DATA:SPLIT` names a part of it, a second argument of `read`.
    """

    name: str
    like: str
    fits: Callable[[Path], bool]
    read: Callable[..., list[RowSet]]
    splits: bool = False


_FOLDERS = (
    Layout("datasets", "a folder written by datasets' save_to_disk", saved.is_saved, saved.saved, splits=True),
    Layout("kaldi", "a Kaldi data directory (wav.scp, text)", kaldi.is_kaldi, kaldi.kaldi),
    Layout(
        "commonvoice",
        "a language of Common Voice (clips/, train.tsv)",
        common_voice.is_common_voice,
        common_voice.common_voice,
        splits=True,
    ),
    Layout("librispeech", "LibriSpeech (*.trans.txt)", librispeech.is_librispeech, librispeech.librispeech),
    Layout("metadata", "audio with metadata.csv or metadata.jsonl", folders.has_metadata, folders.metadata),
    Layout("manifests", "train.jsonl, test.jsonl (.csv, .tsv)", folders.has_part_manifests, folders.part_manifests),
    Layout("parquet", ".parquet files", saved.has_parquet, saved.parquet_folder, splits=True),
    Layout("tar", "tar shards (.tar)", tars.has_shards, tars.shards_below),
)
_ANY_AUDIO = Layout("folder", "audio with an x.txt beside each x.wav", folders.has_audio, folders.audio_with_texts)
_FILES = (
    Layout("commonvoice", "", common_voice.is_list, common_voice.common_voice_list),
    Layout("manifest", ".jsonl, .json, .csv, .tsv", folders.is_manifest, folders.manifest),
    Layout("datasets", ".arrow", saved.is_arrow, saved.arrow),
    Layout("parquet", ".parquet", saved.is_parquet, saved.parquet),
    Layout("tar", ".tar", tars.is_shard, lambda path: tars.tars([path])),
)
_PREFIX = re.compile(r"([a-z]+):(.+)", re.DOTALL)
_PART_SAID = re.compile(r"(train|dev|test)=(.+)", re.DOTALL)
_LIMITS = re.compile(r"[\[?]")  # of a set of the hub: train[:10%], train?rows=5


def row_sets(data: str | Path) -> list[RowSet]:
    """The rows of `data`, see `read_utterances` for what it may be.

    Raises:
        DataError: nothing there, a layout that is not known, or one of several that it may be.
    """
    sets = _sets(str(data))
    if not sets:
        raise DataError(f"{data}: holds nothing of that layout; looked for {_looked_for()}")
    # Parts are apart from each other: of data that are all one part, nothing is known about the others.
    return [replace(rows, part=None) for rows in sets] if len({rows.part for rows in sets}) == 1 else sets


def _sets(data: str) -> list[RowSet]:
    path = _path(data)
    if os.path.isdir(path):
        layout = _layout_of_folder(path)
        return layout.read(path)
    if os.path.exists(path):
        return _layout_of_file(path).read(path)
    said, several = _PREFIX.fullmatch(data), _joined(data)
    if _PART_SAID.fullmatch(data) or (len(several) > 1 and not (said and os.path.exists(_path(said[2])))):
        return [rows for one in several for rows in _one_of_several(one, data)]
    if data.startswith("hf:"):
        return hub.hub(data.removeprefix("hf:"))
    if said and said[1] in {layout.name for layout in (*_FOLDERS, _ANY_AUDIO, *_FILES)}:
        return _said(said[1], said[2])
    if "{" in data:
        return tars.tars(map(Path, tars.expand_braces(str(path))))
    if ":" in path.name:
        return _split(data)
    raise DataError(
        f"{data}: no such file or folder, and no built-in set (those are {', '.join(BUILTIN)}); give a .jsonl, "
        f".csv or .tsv manifest, .parquet, .arrow or .tar, hf:NAME for a set of the hub, or a folder: {_looked_for()}"
    )


def _path(written: str) -> Path:
    """Unlike `Path.expanduser`, it takes what begins with a tilde and names nobody."""
    return Path(os.path.expanduser(written))


def _joined(data: str) -> list[str]:
    """What stands between commas, those within braces aside.

    >>> _joined("s-{0,1}.tar,x.tar")
    ['s-{0,1}.tar', 'x.tar']
    """
    several, depth = [""], 0
    for letter in data:
        depth += (letter == "{") - (letter == "}")
        if letter == "," and depth <= 0:
            several.append("")
        else:
            several[-1] += letter
    return several


def _looked_for() -> str:
    return "; ".join(f"{layout.name}: {layout.like}" for layout in (*_FOLDERS, _ANY_AUDIO))


def _layout_of_folder(folder: Path) -> Layout:
    fitting = [layout for layout in _FOLDERS if layout.fits(folder)]
    if len(fitting) > 1:
        choices = ", ".join(f"{layout.name}:{folder}" for layout in fitting)
        raise DataError(f"{folder}: may be {' or '.join(layout.like for layout in fitting)}; say which: {choices}")
    if not fitting and not _ANY_AUDIO.fits(folder):
        raise DataError(f"{folder}: holds no audio and nothing else that this reads; looked for {_looked_for()}")
    return fitting[0] if fitting else _ANY_AUDIO


def _layout_of_file(path: Path) -> Layout:
    for layout in _FILES:
        if layout.fits(path):
            return layout
    raise DataError(
        f"{path}: not a manifest this reads; it must end in .jsonl, .json, .csv, .tsv, or be .parquet, .arrow or .tar"
    )


def _said(name: str, rest: str) -> list[RowSet]:
    """The rows of `name:rest`."""
    path = _path(rest)
    if os.path.exists(path):
        for layout in _FILES if path.is_file() else (*_FOLDERS, _ANY_AUDIO):
            if layout.name == name:
                return layout.read(path)
        kind, other = ("file", "folders") if path.is_file() else ("folder", "files")
        raise DataError(f"{path}: is a {kind}, and {name}: reads {other}; leave the prefix away, or name another")
    if name == "tar" and "{" in rest:
        return tars.tars(map(Path, tars.expand_braces(str(path))))
    root, _, split = rest.rpartition(":")
    with_splits = [layout for layout in _FOLDERS if layout.name == name and layout.splits]
    if root and with_splits and os.path.isdir(_path(root)):
        return with_splits[0].read(_path(root), split)
    raise DataError(f"{name}:{rest}: no such file or folder")


def _split(data: str) -> list[RowSet]:
    """The rows of FOLDER:SPLIT."""
    root, _, split = data.rpartition(":")
    folder = _path(root)
    if not os.path.isdir(folder):
        raise DataError(f"{data}: no such file or folder, and neither is {root} a folder of which {split} is a split")
    layout = _layout_of_folder(folder)
    if not layout.splits:
        raise DataError(f"{data}: {layout.like} has no splits by name; leave ':{split}' away, or name its folder")
    return layout.read(folder, split)


def _one_of_several(one: str, data: str) -> list[RowSet]:
    """The rows of one of DATA,DATA,…; its part is said (`train=DATA`) or is its name."""
    said = _PART_SAID.fullmatch(one.strip())
    name = said[2] if said else one.strip()
    if not name:
        raise DataError(f"{data}: a comma with nothing behind it")
    if name in BUILTIN:  # what is told by the data's name, its licence among it, would be lost
        raise DataError(f"{data}: {name} is a built-in set and stands alone; list its clips in a manifest to join them")
    sets = _sets(name)
    if said is None and any(rows.part is not None for rows in sets):
        return sets
    stem = Path((_LIMITS.split(name)[0] if name.startswith("hf:") else name).rpartition(":")[2]).stem
    part = said[1] if said else part_of(stem) or part_of_split(stem)
    return [replace(rows, part=part) for rows in sets]
