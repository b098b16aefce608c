"""Every clip read and every text encoded before anything is trained on them: what is bad is found by row, all of it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from audiolora.speech.checks.clip_cache import ClipCache
from audiolora.speech.checks.clip_facts import ClipFacts
from audiolora.speech.checks.measuring import measure_clips
from audiolora.speech.data.audio import MAX_DURATION_S
from audiolora.speech.data.audio_file import check_length
from audiolora.speech.data.findings import LISTED, Finding, finding_of, listing, summary, write_findings
from audiolora.speech.data.manifests import Reading, read_all
from audiolora.speech.data.rows import DataError
from audiolora.speech.data.sources import AudioError
from audiolora.speech.data.utterance import Utterance

if TYPE_CHECKING:
    from audiolora.speech.whisper.weights import LoadedWhisper

__all__ = ["Rules", "check_for_whisper", "check_utterances", "read_all"]

SPECIAL_TOKENS = 8  # room for a Whisper's prompt and its end

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rules:
    """What a clip and its text must be to be trained on.

    Args:
        max_duration_s: the longest clip allowed, after its channel; None allows any.
        stretch: how many times as long a clip lasts after its channel, see `Channel.stretch`.
        encode: text -> token ids, without the tokenizer's special tokens.
        decode: token ids -> text; when given, a text must come back the same up to white space.
        max_tokens: the most ids a text may have.
        normalize: text -> what error rates compare; when given, a letter or digit must be left of every text.
        misfit: (text, seconds after the channel) -> why a clip of this length cannot have this text, or None; such as
            a CTC target with more tokens than the clip has frames.

    >>> Rules(max_duration_s=10.0).fault(utterance, facts) is None  # doctest: +SKIP
    True
    """

    max_duration_s: float | None = MAX_DURATION_S
    stretch: float = 1.0
    encode: Callable[[str], Sequence[int]] | None = None
    decode: Callable[[Sequence[int]], str] | None = None
    max_tokens: int | None = None
    normalize: Callable[[str], str] | None = None
    misfit: Callable[[str, float], str | None] | None = None

    def fault(self, utterance: Utterance, facts: ClipFacts) -> Finding | None:
        """What is bad about an utterance whose clip has these facts, or None; the first fault found."""
        where = utterance.where
        called = where if isinstance(utterance.audio, bytes) else f"{where}: {utterance.audio}"
        if self.stretch != 1:
            called += f" ({self.stretch:.3g} times as long after the channel)"
        if facts.fault is not None:
            return Finding(facts.kind, where, f"{called}: {facts.fault}".removeprefix(f"{where}: "))
        try:
            check_length(
                facts.duration_s, called, None if self.max_duration_s is None else self.max_duration_s / self.stretch
            )
        except AudioError as error:
            return finding_of(error, where)
        fault = self._text_fault(where, utterance.text)
        if fault is None and self.misfit is not None:
            reason = self.misfit(utterance.text, facts.duration_s * self.stretch)
            return None if reason is None else Finding("frames", where, reason)
        return fault

    def _text_fault(self, where: str, text: str) -> Finding | None:
        if self.encode is not None:
            try:
                ids = self.encode(text)
            except (ValueError, TypeError, KeyError) as error:  # what tokenizers raise outside their alphabet
                return Finding("vocabulary", where, f"the tokenizer cannot hold the text {text!r} ({error})")
            if len(ids) == 0:
                return Finding("vocabulary", where, f"the tokenizer turns the text {text!r} into nothing")
            if self.max_tokens is not None and len(ids) > self.max_tokens:
                reason = f"the text has {len(ids)} tokens, more than the limit of {self.max_tokens}; cut the clip: "
                return Finding("tokens", where, reason + repr(text[:60]))
            if self.decode is not None and (back := self.decode(ids)).split() != text.split():
                reason = f"the tokenizer cannot hold the text: {text!r} comes back as {back!r}"
                return Finding("vocabulary", where, reason)
        if self.normalize is not None and not any(map(str.isalnum, self.normalize(text))):
            reason = f"no word is left of the text {text!r} when it is normalised; mend or remove the row"
            return Finding("no-words", where, reason)
        return None


def check_utterances(
    data: Sequence[Utterance] | Reading,
    *,
    max_duration_s: float | None = MAX_DURATION_S,
    stretch: float = 1.0,
    encode: Callable[[str], Sequence[int]] | None = None,
    decode: Callable[[Sequence[int]], str] | None = None,
    max_tokens: int | None = None,
    normalize: Callable[[str], str] | None = None,
    misfit: Callable[[str, float], str | None] | None = None,
    skip_bad: bool = False,
    bad_rows: Path | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> list[Utterance]:
    """Read every clip and encode every text, before anything is trained on them.

    Clips are decoded on worker processes, and what was measured is kept below `cache_dir`: a clip that has not changed
    since is not read again.

    Args:
        data: the utterances; with `read_all`, also the rows that could not be read, which count as bad.
        max_duration_s, stretch, encode, decode, max_tokens, normalize, misfit: see `Rules`.
        skip_bad: leave bad utterances out, logging each with its reason, instead of raising.
        bad_rows: where to list every bad row with its reason (.tsv); the error and the log then tell the first few.
        workers: see `measure_clips`.
        progress: draw a progress bar on standard error.

    Returns: the utterances that are fit to train on, in order.

    Raises:
        DataError: any bad utterance (all of them in one error); with `skip_bad`, only when none is left.

    >>> check_utterances(read_all("train.jsonl"), skip_bad=True)  # doctest: +SKIP
    """
    rules = Rules(max_duration_s, stretch, encode, decode, max_tokens, normalize, misfit)
    utterances, unread = (data.utterances, data.bad_rows) if isinstance(data, Reading) else (data, ())
    clips = [utterance.audio for utterance in utterances]
    facts = measure_clips(clips, workers=workers, cache=ClipCache(), progress=progress)
    faults = [rules.fault(utterance, its) for utterance, its in zip(utterances, facts, strict=True)]
    good = [utterance for utterance, fault in zip(utterances, faults, strict=True) if fault is None]
    problems = [*unread, *(fault for fault in faults if fault is not None)]
    if bad_rows is not None:
        write_findings(bad_rows, problems)
    if problems:
        _tell(problems, len(utterances) + len(unread), bad_rows, refused=not skip_bad or not good)
    return good


def check_for_whisper(
    data: Sequence[Utterance] | Reading,
    whisper: LoadedWhisper,
    normalize: Callable[[str], str],
    *,
    stretch: float = 1.0,
    skip_bad: bool = False,
    bad_rows: Path | None = None,
) -> list[Utterance]:
    """`check_utterances` by what a Whisper takes: 30 s of audio, and as many tokens as its decoder has positions.

    >>> check_for_whisper(read_all("train.jsonl"), load_whisper("tiny.en.pt"), str.lower)  # doctest: +SKIP
    """
    return check_utterances(
        data,
        stretch=stretch,
        encode=lambda text: whisper.processor.tokenizer(text, add_special_tokens=False).input_ids,
        max_tokens=whisper.model.config.max_target_positions - SPECIAL_TOKENS,
        normalize=normalize,
        skip_bad=skip_bad,
        bad_rows=bad_rows,
    )


def _tell(problems: Sequence[Finding], total: int, bad_rows: Path | None, *, refused: bool) -> None:
    """Raise, or log what is left out."""
    listed = "" if bad_rows is None else f"; all of them with their reasons: {bad_rows}"
    counts = f"{len(problems):,} of {total:,} utterances cannot be used"
    told = [str(one) for one in (problems if bad_rows is None else problems[:LISTED])]
    if len(problems) > LISTED:
        counts += f" ({summary(problems)})"
    if refused:
        raise DataError(listing(f"{counts}{listed}", [str(one) for one in problems]))
    for problem in told:
        logger.warning("skipped %s", problem)
    if len(told) < len(problems):
        logger.warning("skipped %d more: %s%s", len(problems) - len(told), counts, listed)
