"""Word and character error rates with bootstrap confidence intervals, and word-level differences.

The alignment is jiwer's (Levenshtein distance), the interval SciPy's percentile bootstrap over utterances, which are
what a test set samples (Bisani and Ney, 2004, "Bootstrap estimates for confidence intervals in ASR performance
evaluation"). Rates are corpus-level: all errors over all reference words, never a mean of ratios.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Literal


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval; all three in percent.

    Example:
        >>> Interval(value=7.9, low=5.2, high=11.0).high
        11.0
    """

    value: float
    low: float
    high: float

    def __post_init__(self) -> None:
        for name, number in (("value", self.value), ("low", self.low), ("high", self.high)):
            if not math.isfinite(number) or number < 0:
                raise ValueError(f"Interval.{name} must be a finite percentage of at least 0, got {number!r}")
        if self.low > self.high:
            raise ValueError(f"Interval.low must not exceed high, got low={self.low!r}, high={self.high!r}")


@dataclass(frozen=True)
class ErrorRates:
    """Corpus-level error rates of one model on one test set.

    Attributes:
        wer: word error rate, percent; above 100 when a model inserts more than it gets right.
        cer: character error rate, percent, spaces counted; not where the language has none (`Normalizer.unspaced`).
        substitutions, insertions, deletions, hits: counts of words.
        reference_words: words in all references: hits + substitutions + deletions.
        utterances: how many utterances were scored; None where it is not known.
        confidence: the level of both intervals, between 0 and 1.
    """

    wer: Interval
    cer: Interval
    substitutions: int
    insertions: int
    deletions: int
    hits: int
    reference_words: int
    utterances: int | None = None
    confidence: float = 0.95

    def __post_init__(self) -> None:
        for name in ("substitutions", "insertions", "deletions", "hits"):
            if getattr(self, name) < 0:
                raise ValueError(f"ErrorRates.{name} must not be negative, got {getattr(self, name)}")
        counted = self.hits + self.substitutions + self.deletions
        if self.reference_words < 1 or self.reference_words != counted:
            raise ValueError(
                f"ErrorRates.reference_words must be positive and equal hits + substitutions + deletions = {counted}, "
                f"got {self.reference_words}"
            )
        _check_confidence(self.confidence)


@dataclass(frozen=True)
class UtteranceErrors:
    """Word errors of one utterance.

    Example:
        >>> UtteranceErrors(substitutions=1, insertions=0, deletions=0, hits=3).wer
        25.0
    """

    substitutions: int
    insertions: int
    deletions: int
    hits: int

    @property
    def errors(self) -> int:
        """Substituted, inserted and deleted words together."""
        return self.substitutions + self.insertions + self.deletions

    @property
    def words(self) -> int:
        """Words in the reference."""
        return self.hits + self.substitutions + self.deletions

    @property
    def wer(self) -> float:
        """Word error rate of this utterance, percent."""
        return 100.0 * self.errors / self.words


@dataclass(frozen=True)
class Edit:
    """One step of a word alignment. `reference` is empty for an insertion, `hypothesis` for a deletion."""

    kind: Literal["equal", "substitute", "insert", "delete"]
    reference: str
    hypothesis: str


def error_rates(
    references: Sequence[str],
    hypotheses: Sequence[str],
    *,
    normalize: Callable[[str], str],
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> ErrorRates:
    """Word and character error rates of a test set, each with a percentile bootstrap interval over utterances.

    One utterance alone has no spread to resample: its interval is its value.

    Args:
        references: what was said, one text an utterance.
        hypotheses: what the model wrote, in the same order.
        normalize: applied to both texts before they are compared (case, punctuation, numbers).
        confidence: level of the interval, between 0 and 1.
        resamples: bootstrap resamples.
        seed: of the bootstrap; the same seed gives the same interval.

    Returns:
        Rates in percent and counts of words.

    Raises:
        ValueError: no utterance, lists of different length, or a reference with no word left after `normalize`.

    Example:
        >>> rates = error_rates(["press one now", "goodbye"], ["press two now", "goodbye"], normalize=str.lower)
        >>> rates.wer.value, rates.substitutions, rates.reference_words
        (25.0, 1, 4)
    """
    import jiwer

    _check_confidence(confidence)
    if resamples < 1:
        raise ValueError(f"resamples must be positive, got {resamples}; try resamples=2000")
    spoken, written = _normalized_pairs(references, hypotheses, normalize)
    words = _count(jiwer.process_words(spoken, written).alignments)
    characters = _count(jiwer.process_characters(*_characters(spoken, written, normalize)).alignments)
    return ErrorRates(
        wer=_ratio_interval(words, confidence, resamples, seed),
        cer=_ratio_interval(characters, confidence, resamples, seed),
        substitutions=sum(u.substitutions for u in words),
        insertions=sum(u.insertions for u in words),
        deletions=sum(u.deletions for u in words),
        hits=sum(u.hits for u in words),
        reference_words=sum(u.words for u in words),
        utterances=len(words),
        confidence=confidence,
    )


def utterance_errors(
    references: Sequence[str], hypotheses: Sequence[str], *, normalize: Callable[[str], str]
) -> list[UtteranceErrors]:
    """Word errors of each utterance, in the order given.

    Args:
        references: what was said, one text an utterance.
        hypotheses: what the model wrote, in the same order.
        normalize: applied to both texts before they are compared.

    Raises:
        ValueError: as in `error_rates`.

    Example:
        >>> [u.wer for u in utterance_errors(["press one", "bye"], ["press", "bye"], normalize=str.lower)]
        [50.0, 0.0]
    """
    import jiwer

    return _count(jiwer.process_words(*_normalized_pairs(references, hypotheses, normalize)).alignments)


def character_errors(
    references: Sequence[str], hypotheses: Sequence[str], *, normalize: Callable[[str], str]
) -> list[UtteranceErrors]:
    """Character errors of each utterance: what `utterance_errors` counts of words; arguments as there.

    Example:
        >>> [u.errors for u in character_errors(["press one", "bye"], ["press ono", "bye"], normalize=str.lower)]
        [1, 0]
    """
    import jiwer

    spoken, written = _characters(*_normalized_pairs(references, hypotheses, normalize), normalize)
    return _count(jiwer.process_characters(spoken, written).alignments)


def word_differences(reference: str, hypothesis: str) -> list[Edit]:
    """The word alignment of two texts that are already normalised.

    Args:
        reference: what was said; words are split at white space.
        hypothesis: what the model wrote.

    Returns:
        One `Edit` a word, in reading order.

    Example:
        >>> [(e.kind, e.reference, e.hypothesis) for e in word_differences("press one now", "press two now")]
        [('equal', 'press', 'press'), ('substitute', 'one', 'two'), ('equal', 'now', 'now')]
    """
    spoken, written = reference.split(), hypothesis.split()
    if not spoken:  # jiwer aligns nothing with an empty reference
        return [Edit("insert", "", word) for word in written]
    import jiwer

    edits: list[Edit] = []
    for chunk in jiwer.process_words(" ".join(spoken), " ".join(written)).alignments[0]:
        left = spoken[chunk.ref_start_idx : chunk.ref_end_idx]
        right = written[chunk.hyp_start_idx : chunk.hyp_end_idx]
        edits.extend(Edit(chunk.type, *pair) for pair in zip_longest(left, right, fillvalue=""))
    return edits


def relative_reduction(before: float, after: float) -> float | None:
    """How much of an error rate went away, in percent of what there was; negative where it grew.

    Args:
        before, after: error rates, both in percent or both as fractions.

    Returns:
        100 · (before − after) / before, or None where `before` is 0 and the ratio has no meaning.

    Raises:
        ValueError: a rate is negative or not finite.

    Example:
        >>> relative_reduction(40.0, 10.0)
        75.0
    """
    for name, rate in (("before", before), ("after", after)):
        if not math.isfinite(rate) or rate < 0:
            raise ValueError(f"{name} must be a finite error rate of at least 0, got {rate!r}")
    return None if before == 0 else 100.0 * (before - after) / before


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence!r}; try confidence=0.95")


def _normalized_pairs(
    references: Sequence[str], hypotheses: Sequence[str], normalize: Callable[[str], str]
) -> tuple[list[str], list[str]]:
    """Both sides normalised, single-spaced, and checked."""
    if isinstance(references, str) or isinstance(hypotheses, str):
        raise ValueError("references and hypotheses must be lists of texts, got one text; wrap it: [text]")
    if len(references) != len(hypotheses):
        raise ValueError(f"as many hypotheses as references are needed, got {len(hypotheses)} for {len(references)}")
    if not references:
        raise ValueError("no utterance to score: references is empty")
    # One space between words whatever the normaliser leaves, so that the character rate counts words apart once.
    spoken = [" ".join(normalize(text).split()) for text in references]
    written = [" ".join(normalize(text).split()) for text in hypotheses]
    for index, (raw, text) in enumerate(zip(references, spoken, strict=True)):
        if not text:
            raise ValueError(
                f"reference {index} has no word left after normalisation: {raw!r}; drop the clip or mend its transcript"
            )
    return spoken, written


def _characters(spoken: list[str], written: list[str], normalize: Callable[[str], str]) -> tuple[list[str], list[str]]:
    """Normalised texts as their characters are counted."""
    if not getattr(normalize, "unspaced", False):
        return spoken, written
    # Characters set apart, to be counted as words: the spaces are no text.
    return [text.replace(" ", "") for text in spoken], [text.replace(" ", "") for text in written]


def _count(alignments: Sequence[Sequence[Any]]) -> list[UtteranceErrors]:
    """Errors of each utterance, from jiwer's alignment of words or of characters."""
    counted = []
    for chunks in alignments:
        lengths: Counter[str] = Counter()
        for c in chunks:
            lengths[c.type] += max(c.ref_end_idx - c.ref_start_idx, c.hyp_end_idx - c.hyp_start_idx)
        counted.append(UtteranceErrors(lengths["substitute"], lengths["insert"], lengths["delete"], lengths["equal"]))
    return counted


def _ratio_interval(counts: Sequence[UtteranceErrors], confidence: float, resamples: int, seed: int) -> Interval:
    """Σ errors / Σ reference units in percent, with its bootstrap interval over utterances."""
    from audiolora.bootstrap import bootstrap_ratio

    found = bootstrap_ratio(
        [100 * c.errors for c in counts], [c.words for c in counts],
        confidence=confidence, resamples=resamples, seed=seed,
    )  # fmt: skip
    return Interval(found.value, found.low, found.high)
