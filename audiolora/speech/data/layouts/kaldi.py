"""Kaldi data directories: `wav.scp` and `text`, with `segments`, `utt2spk` and `utt2lang` where there are any.

https://kaldi-asr.org/doc/data_prep.html. `wav.scp` may hold commands, and none is ever run: of those that only hand a
file's sound on (`cat FILE |`, `flac -c -d -s FILE |`, `sox FILE -t wav - |`) the file itself is read, and every other
one is a bad row. Relative paths are looked for below the directory, else below the working directory, as Kaldi does.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path

from audiolora.speech.data.layouts.parts import part_of
from audiolora.speech.data.rows import DataError, Row, RowSet, read_text

_COLUMNS = ("audio", "text")
_Table = Mapping[str, tuple[str, str]]  # key → where, value


def is_kaldi(folder: Path) -> bool:
    """Whether a folder is a data directory, or holds such folders as `train` and `test`."""
    return _is_one(folder) or bool(_parts(folder))


def kaldi(folder: Path) -> list[RowSet]:
    """The rows of a data directory, or of each part below it.

    Raises:
        DataError: `wav.scp` or `text` is missing.

    >>> kaldi(Path("data/train"))[0].called  # doctest: +SKIP
    'train'
    """
    if _is_one(folder) or not _parts(folder):
        return [RowSet(folder.name, list(_rows(folder)), folder, _COLUMNS)]
    return [RowSet(below.name, list(_rows(below)), below, _COLUMNS, part_of(below.name)) for below in _parts(folder)]


def _is_one(folder: Path) -> bool:
    return (folder / "wav.scp").is_file()


def _parts(folder: Path) -> list[Path]:
    return [below for below in sorted(folder.iterdir()) if part_of(below.name) and below.is_dir() and _is_one(below)]


def _rows(folder: Path) -> Iterator[Row | str]:
    problems: list[str] = []
    for name in ("wav.scp", "text"):
        if not (folder / name).is_file():
            raise DataError(f"{folder}: no {name}; a Kaldi data directory has wav.scp and text")
    recordings, texts = (_table(folder, name, problems) for name in ("wav.scp", "text"))
    segments = _table(folder, "segments", problems)
    speakers, languages = (_table(folder, name, problems) for name in ("utt2spk", "utt2lang"))
    files: dict[str, str] = {}
    for name, (where, written) in recordings.items():
        try:
            files[name] = _file(folder, written)
        except ValueError as error:
            problems.append(f"{where}: {error}")
    whole = {name: (where, name) for name, (where, _) in recordings.items()}
    cut = segments if (folder / "segments").is_file() else whole
    yield from problems
    for name, (where, _) in cut.items():
        if name not in texts:
            yield f"{where}: utterance {name!r} has no line in text; add what is said, or remove the utterance"
    for name, (where, text) in texts.items():
        if name not in cut:
            yield f"{where}: utterance {name!r} has no line in {'segments' if cut is segments else 'wav.scp'}; add it"
            continue
        try:
            recording, times = _times(cut[name]) if cut is segments else (name, {})
        except ValueError as error:
            yield str(error)
            continue
        if recording not in recordings:
            yield f"{cut[name][0]}: recording {recording!r} has no line in wav.scp; add it"
        elif recording in files:
            said = {"speaker": speakers.get(name), "language": languages.get(name)}
            others = {column: cell[1] for column, cell in said.items() if cell is not None}
            yield where, {"audio": files[recording], "text": text, "id": name, **others, **times}
        elif cut is segments:  # of whole recordings, the line in wav.scp is the utterance's own fault
            yield f"{cut[name][0]}: recording {recording!r} is not read, see {recordings[recording][0]}"


def _table(folder: Path, name: str, problems: list[str]) -> dict[str, tuple[str, str]]:
    """The lines `KEY VALUE` of a file, {} where there is none; lines that are none go to `problems`."""
    path, table = folder / name, dict[str, tuple[str, str]]()
    if not path.is_file():
        return table
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{folder.name}/{name} row {number}"
        key, *value = line.split(maxsplit=1)
        if key in table:
            problems.append(f"{where}: {key!r} already stands in {table[key][0]}; remove one of the two")
        elif not value and name != "text":  # an empty text is an utterance's own fault, told with the others
            problems.append(f"{where}: {key!r} stands alone; a line of {name} is a key, a space and its value")
        else:
            table[key] = where, value[0].strip() if value else ""
    return table


def _times(cell: tuple[str, str]) -> tuple[str, dict[str, str]]:
    """(recording, start and end) of a line of `segments`; an end of -1 is that of the recording."""
    where, value = cell
    recording, *times = value.split()
    if len(times) != 2:
        raise ValueError(f"{where}: must be 'UTTERANCE RECORDING START END' in seconds, got {value!r} after UTTERANCE")
    return recording, {"start": times[0], "end": "" if times[1] in ("-1", "-1.0") else times[1]}


def _file(folder: Path, written: str) -> str:
    """The file that a line of wav.scp means."""
    name = _handed_on(written) if written.endswith("|") else written
    if name.rpartition(":")[2].isdigit() and name.rpartition(":")[0].endswith(".ark"):
        raise ValueError(f"{name!r} is a place in an archive, which is not read; write its clips to files of their own")
    return name if (folder / name).is_file() else str(Path(name).absolute())


def _handed_on(command: str) -> str:
    """The one file whose sound a command hands on as it is."""
    words = shlex.split(command.rstrip("|"))
    match words:
        case ["cat", file]:
            return file
        case ["sox", file, "-t", "wav", "-" | "/dev/stdout"]:
            return file
        case ["flac", *options, file] if set("-cd") <= set("".join(options)) <= set("-cds"):
            return file
    raise ValueError(
        f"{command!r} is a command, and none is run; run it once into a WAV file and list that file (read as the file "
        "they name are: cat FILE |, flac -c -d -s FILE |, sox FILE -t wav - |)"
    )
