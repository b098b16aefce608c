"""Utterances (a clip and its transcript) from manifests, folders, saved `datasets` and built-in sets.

Every reader collects all bad rows and reports them in one `DataError`, by file and row.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from audiolora.speech.audio import MAX_DURATION_S, AudioError, read_audio
from audiolora.speech.prompts import BUILTIN
from audiolora.speech.rows import DataError, Row, dataset_rows, folder_rows, manifest_rows
from audiolora.speech.utterance import Utterance

__all__ = ["DataError", "Utterance", "check_utterances", "read_utterances"]

AUDIO_ALIASES = ("audio", "audio_filepath", "path", "file", "file_name")
LANGUAGE_ALIASES = ("language", "lang", "locale")
TEXT_ALIASES = ("text", "transcript", "sentence", "transcription")
_LISTED = 20  # problems an error spells out before it counts the rest

logger = logging.getLogger(__name__)


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
    if str(data) in BUILTIN:
        return BUILTIN[str(data)].load()
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


def _utterances(rows: Iterable[Row | str], root: Path, columns: tuple[str, str], called: str) -> list[Utterance]:
    """Build the utterances of `rows`; a row that is a string is a problem its reader met."""
    listed = list(rows)
    records = [row for row in listed if not isinstance(row, str)]
    problems = [row for row in listed if isinstance(row, str)]
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
            problems.append(str(error))
            continue
        if utterance.id in utterances:
            problems.append(f"{where}: id {utterance.id!r} was already used in {utterances[utterance.id].where}")
        utterances.setdefault(utterance.id, utterance)
    if problems:
        raise DataError(_listing(f"{called}: {len(problems)} bad rows of {len(listed)}", problems))
    return list(utterances.values())


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
    language = next((record[name] for name in LANGUAGE_ALIASES if record.get(name)), None)
    return Utterance(
        id=own_name if identity in (None, "") else str(identity),
        audio=clip,
        text=text.strip(),
        where=where,
        speaker=None if speaker in (None, "") else str(speaker),
        language=None if language is None else str(language),
    )
