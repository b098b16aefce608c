"""Error rates against hand-counted facts, an independent Levenshtein distance, and the bootstrap's known variance."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audiolora.speech.texts.metrics import (
    ErrorRates,
    Interval,
    error_rates,
    relative_reduction,
    utterance_errors,
    word_differences,
)

WORDS = st.lists(st.sampled_from(["a", "b", "cc", "dd"]), max_size=7)
SPOKEN = WORDS.filter(bool)


def as_is(text: str) -> str:
    return text


def levenshtein(left: list[str] | str, right: list[str] | str) -> int:
    """Wagner and Fischer (1974), one row at a time."""
    row = list(range(len(right) + 1))
    for i, x in enumerate(left, 1):
        diagonal, row[0] = row[0], i
        for j, y in enumerate(right, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (x != y))
    return row[-1]


def test_counts_by_hand() -> None:
    # the cat sat / the bat sat: 1 substitution; on the mat / on mat: 1 deletion; hi / hi there you: 2 insertions.
    rates = error_rates(["the cat sat", "on the mat", "hi"], ["the bat sat", "on mat", "hi there you"], normalize=as_is)
    assert (rates.substitutions, rates.deletions, rates.insertions, rates.hits) == (1, 1, 2, 5)
    assert (rates.reference_words, rates.utterances) == (7, 3)
    assert rates.wer.value == pytest.approx(100 * 4 / 7)
    # Characters: c→b is 1; "the " is 4; " there you" is 10; of 11 + 10 + 2 reference characters.
    assert rates.cer.value == pytest.approx(100 * 15 / 23)


def test_rates_are_of_the_corpus_not_a_mean_of_ratios() -> None:
    rates = error_rates(["a", "b b b b b b b b b"], ["x", "b b b b b b b b b"], normalize=as_is)
    assert rates.wer.value == pytest.approx(10.0)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(SPOKEN, WORDS), min_size=1, max_size=5))
def test_rates_against_an_independent_distance(pairs: list[tuple[list[str], list[str]]]) -> None:
    references, hypotheses = [" ".join(r) for r, _ in pairs], [" ".join(h) for _, h in pairs]
    rates = error_rates(references, hypotheses, normalize=as_is, resamples=20)
    words = sum(len(r) for r, _ in pairs)
    assert rates.reference_words == words
    assert rates.wer.value == pytest.approx(100 * sum(levenshtein(r, h) for r, h in pairs) / words)
    characters = sum(map(len, references))
    distance = sum(levenshtein(r, h) for r, h in zip(references, hypotheses, strict=True))
    assert rates.cer.value == pytest.approx(100 * distance / characters)
    each = utterance_errors(references, hypotheses, normalize=as_is)
    assert [u.errors for u in each] == [levenshtein(r, h) for r, h in pairs]
    assert [u.words for u in each] == [len(r) for r, _ in pairs]


@settings(deadline=None, max_examples=60)
@given(WORDS, WORDS)
def test_differences_spell_both_texts_with_the_fewest_edits(reference: list[str], hypothesis: list[str]) -> None:
    edits = word_differences(" ".join(reference), " ".join(hypothesis))
    assert [e.reference for e in edits if e.kind != "insert"] == reference
    assert [e.hypothesis for e in edits if e.kind != "delete"] == hypothesis
    assert all(e.reference == e.hypothesis for e in edits if e.kind == "equal")
    assert sum(e.kind != "equal" for e in edits) == levenshtein(reference, hypothesis)


def test_interval_has_the_width_of_the_delta_method() -> None:
    """For a ratio of means the standard error is sqrt(Σ(eᵢ − ρ wᵢ)²) / Σw; a 95 % interval is ± 1.96 of it."""
    rng = np.random.default_rng(0)
    words = rng.integers(3, 12, size=400)
    errors = rng.binomial(words, 0.2)
    references = [" ".join(["w"] * n) for n in words]
    hypotheses = [" ".join(["x"] * k + ["w"] * (n - k)) for n, k in zip(words, errors, strict=True)]
    rates = error_rates(references, hypotheses, normalize=as_is, resamples=4000)
    ratio = errors.sum() / words.sum()
    half = 100 * 1.96 * math.sqrt(((errors - ratio * words) ** 2).sum()) / words.sum()
    assert rates.wer.high - rates.wer.low == pytest.approx(2 * half, rel=0.08)
    assert rates.wer.low < 100 * ratio < rates.wer.high
    narrower = error_rates(references, hypotheses, normalize=as_is, resamples=4000, confidence=0.5)
    assert rates.wer.low < narrower.wer.low < narrower.wer.high < rates.wer.high


def test_seed_decides_the_interval() -> None:
    texts = ["a b c", "d e", "f g h i", "j", "k l"] * 6, ["a b", "d x", "f g h i", "j", "k l"] * 6
    first, again, other = (error_rates(*texts, normalize=as_is, resamples=200, seed=s) for s in (1, 1, 2))
    assert first == again
    assert first.wer != other.wer


def test_perfect_and_single_utterances_have_no_spread() -> None:
    perfect = error_rates(["a b", "c"], ["a b", "c"], normalize=as_is)
    assert perfect.wer == perfect.cer == Interval(0.0, 0.0, 0.0)
    single = error_rates(["a b"], [""], normalize=as_is)
    assert single.wer == Interval(100.0, 100.0, 100.0)


def test_both_sides_are_normalised() -> None:
    assert error_rates(["Press ONE"], ["press  one "], normalize=str.lower).wer.value == 0
    assert error_rates(["Press ONE"], ["press one"], normalize=as_is).wer.value == 100


@pytest.mark.parametrize(
    ("references", "hypotheses", "message"),
    [
        (["a", "..."], ["a", "b"], r"reference 1 has no word left after normalisation: '\.\.\.'"),
        (["a", "b"], ["a"], "got 1 for 2"),
        ([], [], "references is empty"),
        ("a b", "a b", "lists of texts"),
    ],
)
def test_mistakes_are_named(references: list[str], hypotheses: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        error_rates(references, hypotheses, normalize=lambda text: text.replace(".", ""))


@pytest.mark.parametrize("options", [{"confidence": 1.0}, {"confidence": 95}, {"resamples": 0}])
def test_bootstrap_options_are_checked(options: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        error_rates(["a"], ["a"], normalize=as_is, **options)


def test_relative_reduction() -> None:
    assert relative_reduction(148.3, 7.9) == pytest.approx(94.673, abs=1e-3)
    assert relative_reduction(10, 15) == -50
    assert relative_reduction(0, 3) is None
    with pytest.raises(ValueError, match="before"):
        relative_reduction(math.nan, 1)


def test_intervals_and_rates_are_validated() -> None:
    with pytest.raises(ValueError, match=r"Interval\.value"):
        Interval(math.nan, 0, 1)
    with pytest.raises(ValueError, match="low must not exceed high"):
        Interval(1, 2, 1)
    interval = Interval(1, 0, 2)
    with pytest.raises(ValueError, match="equal hits"):
        ErrorRates(interval, interval, substitutions=1, insertions=0, deletions=0, hits=3, reference_words=9)
