"""Utterances (a clip and its transcript) from manifests, folders, saved `datasets` and built-in sets.

Every reader collects all bad rows and reports them in one `DataError`, by file and row.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from audiolora.speech.audio import MAX_DURATION_S, AudioError, read_audio
from audiolora.speech.layouts.find import row_sets
from audiolora.speech.prompts import BUILTIN
from audiolora.speech.rows import DataError, Row, RowSet
from audiolora.speech.segments import segment_times
from audiolora.speech.sources import AudioSource, Segment, Source
from audiolora.speech.utterance import Utterance, file_fault

__all__ = ["DataError", "Utterance", "check_utterances", "read_all", "read_utterances"]

AUDIO_ALIASES = ("audio", "audio_filepath", "path", "file", "file_name")
TEXT_ALIASES = ("text", "transcript", "sentence", "transcription")
SPEAKER_ALIASES = ("speaker", "speaker_id", "client_id")
LANGUAGE_ALIASES = ("language", "lang", "locale")
_Checked = dict[Path, str | None]
_LISTED = 20  # problems an error spells out before it counts the rest

logger = logging.getLogger(__name__)


def read_utterances(
    data: str | Path, *, audio_column: str = "audio", text_column: str = "text", skip_bad: bool = False
) -> list[Utterance]:
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
        DataError: nothing there, an unknown format, a missing column, or bad rows (all of them in one error, every one
            in its `problems`); with `skip_bad`, of bad rows only when no good one is left.

    >>> read_utterances("train.jsonl")[0].where  # doctest: +SKIP
    'train.jsonl row 1'
    """
    utterances, problems, n_rows = _read_everything(data, audio_column, text_column)
    if problems and (not skip_bad or not utterances):
        raise DataError(_listing(f"{data}: {len(problems)} bad rows of {n_rows}", problems), problems)
    for problem in problems:
        logger.warning("skipped %s", problem)
    return utterances


def read_all(
    data: str | Path, *, audio_column: str = "audio", text_column: str = "text"
) -> tuple[list[Utterance], list[str]]:
    """As `read_utterances`, but bad rows are handed back instead of raised: (utterances, problems of bad rows).

    Raises:
        DataError: nothing there, an unknown format, or a missing column.

    >>> utterances, problems = read_all("train.jsonl")  # doctest: +SKIP
    """
    utterances, problems, _ = _read_everything(data, audio_column, text_column)
    return utterances, problems


def _read_everything(data: str | Path, audio_column: str, text_column: str) -> tuple[list[Utterance], list[str], int]:
    if str(data) in BUILTIN:
        utterances = BUILTIN[str(data)].load()
        return utterances, [], len(utterances)
    return _read(row_sets(data), (audio_column, text_column))


def check_utterances(
    utterances: Sequence[Utterance],
    *,
    max_duration_s: float = MAX_DURATION_S,
    stretch: float = 1.0,
    encode: Callable[[str], Sequence[int]] | None = None,
    decode: Callable[[Sequence[int]], str] | None = None,
    max_tokens: int | None = None,
    normalize: Callable[[str], str] | None = None,
    skip_bad: bool = False,
    progress: bool = True,
) -> list[Utterance]:
    """Read every clip and encode every text, before anything is trained on them.

    Args:
        max_duration_s: the longest clip allowed, after its channel.
        stretch: how many times as long a clip lasts after its channel, see `Channel.stretch`.
        encode: text -> token ids, without the tokenizer's special tokens.
        decode: token ids -> text; when given, a text must come back the same up to white space.
        max_tokens: the most ids a text may have.
        normalize: text -> what error rates compare; when given, a letter or digit must be left of every text.
        skip_bad: leave bad utterances out, logging each with its reason, instead of raising.
        progress: draw a progress bar on standard error.

    Returns: the utterances that are fit to train on, in order.

    Raises:
        DataError: any bad utterance (all of them in one error); with `skip_bad`, only when none is left.

    >>> check_utterances(read_utterances("train.jsonl"), skip_bad=True)  # doctest: +SKIP
    """
    from rich.console import Console
    from rich.progress import track

    good, problems = [], []
    clips = track(
        utterances,
        "checking clips",
        console=Console(stderr=True),
        disable=not progress,
        transient=True,
    )
    for utterance in clips:
        called = utterance.where if isinstance(utterance.audio, bytes) else f"{utterance.where}: {utterance.audio}"
        if stretch != 1:
            called += f" ({stretch:.3g} times as long after the channel)"
        try:
            read_audio(utterance.audio, name=called, max_duration_s=max_duration_s / stretch)
        except AudioError as error:
            problems.append(str(error))
            continue
        fault = None if encode is None else _text_fault(utterance.text, encode, decode, max_tokens)
        if fault is None and normalize is not None and not any(map(str.isalnum, normalize(utterance.text))):
            fault = f"no word is left of the text {utterance.text!r} when it is normalised; mend or remove the row"
        if fault is None:
            good.append(utterance)
        else:
            problems.append(f"{utterance.where}: {fault}")
    if problems and (not skip_bad or not good):
        raise DataError(_listing(f"{len(problems)} of {len(utterances)} utterances cannot be used", problems))
    for problem in problems:
        logger.warning("skipped %s", problem)
    return good


def _text_fault(
    text: str,
    encode: Callable[[str], Sequence[int]],
    decode: Callable[[Sequence[int]], str] | None,
    max_tokens: int | None,
) -> str | None:
    try:
        ids = encode(text)
    except (ValueError, TypeError, KeyError) as error:  # what tokenizers raise for text outside their alphabet
        return f"the tokenizer cannot hold the text {text!r} ({error})"
    if len(ids) == 0:
        return f"the tokenizer turns the text {text!r} into nothing"
    if max_tokens is not None and len(ids) > max_tokens:
        return f"the text has {len(ids)} tokens, more than the limit of {max_tokens}; cut the clip: {text[:60]!r}"
    if decode is not None and decode(ids).split() != text.split():
        return f"the tokenizer cannot hold the text: {text!r} comes back as {decode(ids)!r}"
    return None


def _listing(headline: str, problems: Sequence[str]) -> str:
    rest = [f"… and {len(problems) - _LISTED} more"] if len(problems) > _LISTED else []
    return "\n  ".join([headline + ":", *problems[:_LISTED], *rest])


def _read(sets: Sequence[RowSet], columns: tuple[str, str]) -> tuple[list[Utterance], list[str], int]:
    """The utterances of several sets, the problems of their rows, and how many rows there were."""
    utterances: list[Utterance] = []
    problems: list[str] = []
    n_rows = 0
    checked: dict[Path, str | None] = {}  # files that segments lie in: one look at each
    for several in sets:
        rows = list(several.rows)
        n_rows += len(rows)
        if not rows:
            raise DataError(f"{several.called}: empty, it holds no utterances")
        problems += [row for row in rows if isinstance(row, str)]
        records = [row for row in rows if not isinstance(row, str)]
        if not records:
            continue
        audio_column, text_column = several.columns or _columns(records, columns, several.called)
        for where, record in records:
            try:
                utterances.append(_utterance(where, record, several, audio_column, text_column, checked))
            except DataError as error:
                problems.append(str(error))
    unique, repeated = _unique(utterances, len(sets) > 1)
    return unique, problems + repeated, n_rows


def _unique(utterances: Sequence[Utterance], several: bool) -> tuple[list[Utterance], list[str]]:
    """The utterances that are the first of their id. Parts that use the same ids have them led by the part's name."""
    if several and len({utterance.id for utterance in utterances}) < len(utterances):
        utterances = [one if one.part is None else replace(one, id=f"{one.part}/{one.id}") for one in utterances]
    first: dict[str, Utterance] = {}
    problems = []
    for utterance in utterances:
        if first.setdefault(utterance.id, utterance) is not utterance:
            problems.append(
                f"{utterance.where}: id {utterance.id!r} was already used in {first[utterance.id].where}; "
                "give each row an id of its own, or remove one of the two"
            )
    return list(first.values()), problems


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
            raise DataError(f"{where}: {fault}")
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
        return root / Path(audio).expanduser(), audio
    raise DataError(f"{where}: column {column!r} must hold the path of an audio file, got {audio!r}")
