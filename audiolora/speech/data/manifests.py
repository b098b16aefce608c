"""Utterances (a clip and its transcript) from manifests, folders, saved `datasets` and built-in sets.

Every reader collects all bad rows and reports them in one `DataError`, by file and row.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from audiolora.speech.data.findings import Finding, finding_of, listing, printable
from audiolora.speech.data.layouts.find import row_sets
from audiolora.speech.data.prompts import BUILTIN
from audiolora.speech.data.rows import DataError, Row, RowSet
from audiolora.speech.data.segments import segment_times
from audiolora.speech.data.sources import AudioSource, Segment, Source
from audiolora.speech.data.utterance import Utterance, file_fault

__all__ = ["DataError", "Reading", "Utterance", "read_all", "read_utterances"]

AUDIO_ALIASES = ("audio", "audio_filepath", "path", "file", "file_name")
TEXT_ALIASES = ("text", "transcript", "sentence", "transcription")
SPEAKER_ALIASES = ("speaker", "speaker_id", "client_id")
LANGUAGE_ALIASES = ("language", "lang", "locale")
_Checked = dict[Path, str | None]

logger = logging.getLogger(__name__)


def read_utterances(
    data: str | Path, *, audio_column: str = "audio", text_column: str = "text", skip_bad: bool = False
) -> list[Utterance]:
    """Read a set of utterances.

    Args:
        data: one of
            a `.jsonl` (or `.json` with a record a line), `.csv` or `.tsv` manifest, paths absolute or relative to it;
            a folder with `metadata.csv`/`metadata.jsonl` (column `file_name`), or with an `x.txt` beside each `x.wav`,
            or with manifests `train.jsonl`, `test.jsonl`; a Kaldi data directory; a language of Common Voice;
            LibriSpeech; tar shards; Parquet; what `datasets.save_to_disk` wrote, or one `:split` of it;
            `shards-{000..012}.tar`; `hf:NAME[:CONFIG][:SPLIT]`, with `?rows=N` or `?hours=H` for that much of it;
            several of these with commas between, `train=a.jsonl,test=b.jsonl` where they are parts;
            a built-in name, e.g. `prompts-en` (write `./prompts-en` for a folder of that name).
            A prefix says what a folder is that may be several of them: `kaldi:DATA`.
        audio_column: column with the audio; where absent and left at its default, `audio_filepath`, `path`, `file` or
            `file_name` is taken.
        text_column: column with the transcript; likewise `transcript`, `sentence` or `transcription`.
        skip_bad: leave bad rows out, logging each with its reason, instead of raising.

    Returns: the utterances in the order of the data. The id is the column `id`, else the audio path as written, else a
        digest of the audio; the speaker is the column `speaker`, `speaker_id` or `client_id`, the language `language`,
        `lang` or `locale`; the part is train, dev or test where the data say so. A row with `start` or `end`, or with
        `offset` and `duration` (NeMo), all in seconds, is that segment of its file.

    Raises:
        DataError: nothing there, an unknown format, a missing column, or bad rows (all of them in one error, every one
            in its `problems`); with `skip_bad`, of bad rows only when no good one is left.

    >>> read_utterances("train.jsonl")[0].where  # doctest: +SKIP
    'train.jsonl row 1'
    """
    found = read_all(data, audio_column=audio_column, text_column=text_column)
    problems = [str(one) for one in found.bad_rows]
    if problems and (not skip_bad or not found.utterances):
        n_rows = len(found.utterances) + len(problems)
        raise DataError(listing(f"{data}: {len(problems):,} bad rows of {n_rows:,}", problems), problems)
    for problem in problems:
        logger.warning("skipped %s", problem)
    return found.utterances


class Reading(NamedTuple):
    """What was read of some data.

    Args:
        utterances: in the order of the data.
        bad_rows: what is wrong with each row that is none.
    """

    utterances: list[Utterance]
    bad_rows: list[Finding]


def read_all(data: str | Path, *, audio_column: str = "audio", text_column: str = "text") -> Reading:
    """As `read_utterances`, but bad rows are handed back instead of raised.

    Raises:
        DataError: nothing there, an unknown format, or a missing column.

    >>> utterances, bad_rows = read_all("train.jsonl")  # doctest: +SKIP
    """
    if str(data) in BUILTIN:
        return Reading(BUILTIN[str(data)].load(), [])
    return _read(row_sets(data), (audio_column, text_column))


def _read(sets: Sequence[RowSet], columns: tuple[str, str]) -> Reading:
    """The utterances of several sets, and what is wrong with their other rows."""
    utterances: list[Utterance] = []
    problems: list[Finding] = []
    checked: dict[Path, str | None] = {}  # files that segments lie in: one look at each
    for several in sets:
        rows = list(several.rows)
        if not rows:
            raise DataError(f"{several.called}: empty, it holds no utterances")
        problems += [Finding("row", *printable(row).split(": ", 1)) for row in rows if isinstance(row, str)]
        records = [row for row in rows if not isinstance(row, str)]
        if not records:
            continue
        audio_column, text_column = several.columns or _columns(records, columns, several.called)
        for where, record in records:
            try:
                utterances.append(_utterance(where, record, several, audio_column, text_column, checked))
            except DataError as error:
                problems.append(finding_of(error, where))
    unique, repeated = _unique(utterances, len(sets) > 1)
    return Reading(unique, problems + repeated)


def _unique(utterances: Sequence[Utterance], several: bool) -> Reading:
    """The utterances that are the first of their id. Parts that use the same ids have them led by the part's name."""
    if several and len({utterance.id for utterance in utterances}) < len(utterances):
        utterances = [one if one.part is None else replace(one, id=f"{one.part}/{one.id}") for one in utterances]
    first: dict[str, Utterance] = {}
    problems = []
    for utterance in utterances:
        if first.setdefault(utterance.id, utterance) is not utterance:
            reason = (
                f"id {utterance.id!r} was already used in {first[utterance.id].where}; "
                "give each row an id of its own, or remove one of the two"
            )
            problems.append(Finding("duplicate-id", utterance.where, reason))
    return Reading(list(first.values()), problems)


def _columns(records: Iterable[Row], wanted: tuple[str, str], called: str) -> tuple[str, str]:
    found = list(dict.fromkeys(key for _, record in records for key in record if isinstance(key, str)))
    return _column(wanted[0], AUDIO_ALIASES, found, called), _column(wanted[1], TEXT_ALIASES, found, called)


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


def _utterance(
    where: str, record: Mapping[Any, Any], rows: RowSet, audio_column: str, text_column: str, checked: _Checked
) -> Utterance:
    if None in record:  # surplus fields, as csv.DictReader hands them over
        raise DataError(f"{where}: more fields than the header has; a comma inside a field needs quotes around it")
    text = record.get(text_column)
    if text is None or not isinstance(text, str):
        raise DataError(f"{where}: column {text_column!r} must hold the transcript, got {text!r}")
    clip, own_name = _clip(where, record, rows.root, audio_column)
    try:
        times = segment_times(record, audio_column)
        if times is not None and not isinstance(clip, bytes):
            clip = Segment(clip, *times)
            if not clip.whole:
                length = "" if clip.duration_s is None else format(clip.duration_s, ".10g")
                own_name = f"{own_name}:{clip.start_s:.10g}+{length}"
    except ValueError as error:
        raise DataError(f"{where}: {error}") from error
    if times is not None and isinstance(clip, bytes):
        raise DataError(f"{where}: a segment of a clip that is stored as bytes in the row; remove its times")
    if isinstance(clip, Segment):
        if clip.file not in checked:
            checked[clip.file] = file_fault(clip.file)
        if fault := checked[clip.file]:
            raise DataError(f"{where}: {fault}", kind="missing")
    return Utterance(
        id=_said(record, "id") or own_name,
        audio=clip,
        text=text.strip(),
        where=where,
        speaker=_said(record, *SPEAKER_ALIASES),
        language=_said(record, *LANGUAGE_ALIASES),
        part=rows.part,
    )


def _said(record: Mapping[Any, Any], *columns: str) -> str | None:
    """What the first of `columns` that says something says."""
    said = (record.get(column) for column in columns)
    return next((str(value) for value in said if value not in (None, "")), None)


def _clip(where: str, record: Mapping[Any, Any], root: Path, column: str) -> tuple[AudioSource, str]:
    """The clip of a row and what it is called there."""
    audio = record.get(column)
    if isinstance(audio, Source):
        return audio, str(audio)
    if isinstance(audio, Mapping):  # how datasets stores an undecoded clip: its bytes, or the path of its file
        audio = audio["bytes"] if audio.get("bytes") is not None else audio.get("path")
    if isinstance(audio, bytes):
        return audio, hashlib.sha256(audio).hexdigest()[:16]
    if isinstance(audio, str) and audio.strip():
        return root / os.path.expanduser(audio), audio
    raise DataError(f"{where}: column {column!r} must hold the path of an audio file, got {audio!r}")
