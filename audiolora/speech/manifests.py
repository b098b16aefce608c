"""Utterances (a clip and its transcript) from manifests, folders, saved `datasets` and built-in sets.

Every reader collects all bad rows and reports them in one `DataError`, by file and row.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from audiolora.speech.findings import Finding, finding_of, listing
from audiolora.speech.prompts import BUILTIN
from audiolora.speech.rows import DataError, Row, dataset_rows, folder_rows, manifest_rows
from audiolora.speech.utterance import Utterance

__all__ = ["DataError", "Reading", "Utterance", "read_all", "read_utterances"]

AUDIO_ALIASES = ("audio", "audio_filepath", "path", "file", "file_name")
TEXT_ALIASES = ("text", "transcript", "sentence", "transcription")


@dataclass(frozen=True)
class Reading:
    """What was read of some data: the utterances, and what is wrong with each row that is none.

    >>> Reading([], [Finding("missing", "x.csv row 2", "no file a.wav")]).bad_rows[0].where
    'x.csv row 2'
    """

    utterances: Sequence[Utterance]
    bad_rows: Sequence[Finding]


def read_utterances(data: str | Path, *, audio_column: str = "audio", text_column: str = "text") -> list[Utterance]:
    """Read a set of utterances.

    Args:
        data: one of
            a `.jsonl` (or `.json` with a record a line), `.csv` or `.tsv` manifest, paths absolute or relative to it;
            a folder with `metadata.csv`/`metadata.jsonl` (column `file_name`), or with an `x.txt` beside each `x.wav`;
            a directory written by `datasets.save_to_disk`, with `:split` behind it where it holds several;
            a built-in name, e.g. `prompts-en` (write `./prompts-en` for a folder of that name).
        audio_column: column with the audio; where absent and left at its default, `audio_filepath`, `path`, `file` or
            `file_name` is taken.
        text_column: column with the transcript; likewise `transcript`, `sentence` or `transcription`.

    Returns: the utterances in the order of the data. The id is the column `id`, else the audio path as written, else a
    digest of the audio; the speaker is the column `speaker` or `speaker_id`.

    Raises:
        DataError: nothing there, an unknown format, a missing column, or bad rows (all of them in one error).

    >>> read_utterances("train.jsonl")[0].where  # doctest: +SKIP
    'train.jsonl row 1'
    """
    found = read_all(data, audio_column=audio_column, text_column=text_column)
    if found.bad_rows:
        n_bad, n_rows = len(found.bad_rows), len(found.utterances) + len(found.bad_rows)
        headline = f"{Path(data).name}: {n_bad:,} bad rows of {n_rows:,}"
        raise DataError(listing(headline, [str(one) for one in found.bad_rows]))
    return list(found.utterances)


def read_all(data: str | Path, *, audio_column: str = "audio", text_column: str = "text") -> Reading:
    """As `read_utterances`, but bad rows are handed back instead of raised.

    Raises:
        DataError: nothing there, an unknown format, or a missing column.

    >>> read_all("train.jsonl").bad_rows  # doctest: +SKIP
    []
    """
    if str(data) in BUILTIN:
        return Reading(BUILTIN[str(data)].load(), [])
    path = Path(data).expanduser()
    columns = (audio_column, text_column)
    if path.is_file():
        return _utterances(manifest_rows(path), path.parent, columns, path.name)
    if not path.exists() and ":" in path.name:  # a saved DatasetDict and its split
        root, split = path.with_name(path.name.rpartition(":")[0]), path.name.rpartition(":")[2]
        if root.is_dir():
            return _utterances(dataset_rows(root, split), root, columns, f"{root.name}:{split}")
    if not path.is_dir():
        raise DataError(
            f"{data}: no such file or folder, and no built-in set (those are {', '.join(BUILTIN)}); give a .jsonl, "
            ".csv or .tsv manifest, a folder of audio with transcripts, or a directory saved by datasets"
        )
    if any((path / name).is_file() for name in ("dataset_dict.json", "state.json")):
        return _utterances(dataset_rows(path, None), path, columns, path.name)
    for name in ("metadata.jsonl", "metadata.csv", "metadata.tsv"):
        if (path / name).is_file():
            return _utterances(manifest_rows(path / name), path, columns, name)
    return _utterances(folder_rows(path), path, ("audio", "text"), path.name)


def _utterances(rows: Iterable[Row | str], root: Path, columns: tuple[str, str], called: str) -> Reading:
    """Build the utterances of `rows`; a row that is a string is a problem its reader met."""
    listed = list(rows)
    records = [row for row in listed if not isinstance(row, str)]
    problems = [Finding("row", *row.split(": ", 1)) for row in listed if isinstance(row, str)]
    if not listed:
        raise DataError(f"{called}: empty, it holds no utterances")
    if records:
        found = dict.fromkeys(key for _, record in records for key in record if isinstance(key, str))
        audio_column = _column(columns[0], AUDIO_ALIASES, list(found), called)
        text_column = _column(columns[1], TEXT_ALIASES, list(found), called)
    utterances: dict[str, Utterance] = {}
    for where, record in records:
        try:
            utterance = _utterance(where, record, root, audio_column, text_column)
        except DataError as error:
            problems.append(finding_of(error, where))
            continue
        if utterance.id in utterances:
            reason = f"id {utterance.id!r} was already used in {utterances[utterance.id].where}"
            problems.append(Finding("duplicate-id", where, reason))
        utterances.setdefault(utterance.id, utterance)
    return Reading(list(utterances.values()), problems)


def _column(wanted: str, aliases: tuple[str, ...], found: list[str], called: str) -> str:
    allowed = aliases if wanted == aliases[0] else (wanted,)
    for name in allowed:
        if name in found:
            return name
    raise DataError(
        f"{called}: no column {wanted!r}; found {', '.join(map(repr, found)) or 'none'}. Name the {aliases[0]} column "
        f"({aliases[0]}_column={found[0]!r}, say) or rename it"
        if found
        else f"{called}: no columns, expected {wanted!r}"
    )


def _utterance(where: str, record: Mapping[Any, Any], root: Path, audio_column: str, text_column: str) -> Utterance:
    if None in record:  # surplus fields, as csv.DictReader hands them over
        raise DataError(f"{where}: more fields than the header has; a comma inside a field needs quotes around it")
    text, audio = record.get(text_column), record.get(audio_column)
    if text is None or not isinstance(text, str):
        raise DataError(f"{where}: column {text_column!r} must hold the transcript, got {text!r}")
    if record.get("offset") not in (None, "", 0, "0", "0.0"):  # NeMo manifests cut segments out of long files
        raise DataError(
            f"{where}: segments of a longer file (offset={record['offset']!r}) are not read; cut the file first"
        )
    if isinstance(audio, Mapping):  # how datasets stores an undecoded clip: its bytes, or the path of its file
        audio = audio["bytes"] if audio.get("bytes") is not None else audio.get("path")
    clip: Path | bytes
    if isinstance(audio, bytes):
        clip, own_name = audio, hashlib.sha256(audio).hexdigest()[:16]
    elif isinstance(audio, str) and audio.strip():
        clip, own_name = root / Path(audio).expanduser(), audio
    else:
        raise DataError(f"{where}: column {audio_column!r} must hold the path of an audio file, got {audio!r}")
    identity, speaker = record.get("id"), record.get("speaker", record.get("speaker_id"))
    return Utterance(
        id=own_name if identity in (None, "") else str(identity),
        audio=clip,
        text=text.strip(),
        where=where,
        speaker=None if speaker in (None, "") else str(speaker),
    )
