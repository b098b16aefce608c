"""Differences against hand-made cases, a bootstrap by hand, SciPy's permutation test, and how often chance is told."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import permutation_test

from audiolora.speech.texts.significance import difference


def test_equal_systems_do_not_differ() -> None:
    found = difference([1, 0, 2], [1, 0, 2], [5, 4, 6])
    assert (found.points, found.low, found.high, found.relative) == (0, 0, 0, 0)
    assert (found.better, found.p_value, found.wins, found.ties, found.losses) == (0.5, 1.0, 0, 3, 0)
    assert not found.told_apart


def test_by_hand() -> None:
    """6 of 20 words wrong against 3 of 20: 15 points, half of what there was."""
    found = difference([2, 1, 0, 3], [1, 1, 0, 1], [5, 5, 5, 5])
    assert (found.points, found.relative) == (-15.0, pytest.approx(-50.0))
    assert (found.wins, found.ties, found.losses) == (2, 2, 0)
    # Gillick and Cox (1989): the mean of the differences over its standard error; -1, 0, 0, -2.
    changes = np.array([-1, 0, 0, -2])
    t = changes.mean() / (changes.std(ddof=1) / math.sqrt(4))
    assert t == pytest.approx(-1.5667, abs=1e-4)
    assert found.p_value == pytest.approx(0.2152, abs=1e-4)  # Student, 3 degrees of freedom


def test_one_utterance_tells_nothing_apart() -> None:
    found = difference([2], [1], [5])
    assert (found.points, found.low, found.high, found.p_value) == (-20, -20, -20, None)
    assert not found.told_apart


def drawn(n: int, seed: int, rate: float = 0.3) -> tuple[list[int], list[int], list[int]]:
    rng = np.random.default_rng(seed)
    words = rng.integers(3, 15, n)
    hard = rng.beta(1, 3, n)  # what makes an utterance hard for both
    errors = rng.binomial(words, hard), rng.binomial(words, hard * rate / 0.3)
    return errors[0].tolist(), errors[1].tolist(), words.tolist()


def test_the_bootstrap_by_hand() -> None:
    first, second, words = (np.array(row) for row in drawn(120, 1, 0.25))
    found = difference(first, second, words, seed=3)
    rng = np.random.default_rng(9)
    places = rng.integers(0, 120, (20_000, 120))
    deltas = 100 * (second - first)[places].sum(1) / words[places].sum(1)
    low, high = np.quantile(deltas, [0.025, 0.975])
    assert found.low == pytest.approx(low, abs=0.15) and found.high == pytest.approx(high, abs=0.15)
    assert found.better == pytest.approx((deltas < 0).mean() + (deltas == 0).mean() / 2, abs=0.01)


@pytest.mark.parametrize("seed", range(4))
def test_the_matched_pairs_test_and_a_permutation_test_agree(seed: int) -> None:
    first, second, words = drawn(150, seed, 0.25)
    exact = permutation_test(
        (np.array(first), np.array(second)), lambda a, b, axis: (a - b).mean(axis=axis), permutation_type="samples",
        vectorized=True, n_resamples=9999, rng=np.random.default_rng(0),
    ).pvalue  # fmt: skip
    assert difference(first, second, words, resamples=50).p_value == pytest.approx(exact, abs=0.02)


def test_chance_is_told_apart_as_often_as_it_says() -> None:
    """Two equal systems on 200 drawn test sets: one in twenty at 95 %."""
    found = [difference(*drawn(80, seed), resamples=400) for seed in range(200)]
    assert 2 <= sum(one.told_apart for one in found) <= 20
    assert 2 <= sum(one.p_value < 0.05 for one in found) <= 20


def test_a_large_difference_is_told() -> None:
    found = difference(*drawn(200, 0, 0.1))
    assert found.told_apart and found.better == 1.0 and found.p_value < 1e-6 and found.high < 0


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(1, 9)), min_size=1, max_size=12))
def test_the_other_way_round_it_has_the_other_sign(rows: list[tuple[int, int, int]]) -> None:
    first, second, words = (list(column) for column in zip(*rows, strict=True))
    there, back = (difference(*pair, words, resamples=200) for pair in ((first, second), (second, first)))
    assert there.points == pytest.approx(-back.points) and there.p_value == pytest.approx(back.p_value)
    assert (there.low, there.high) == (pytest.approx(-back.high), pytest.approx(-back.low))
    assert there.better == pytest.approx(1 - back.better)
    assert (there.wins, there.losses) == (back.losses, back.wins)


def test_one_utterance_has_no_test() -> None:
    assert difference([1], [0], [4]).p_value is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(([1], [1, 2], [3]), "got 1, 2 and 1"), (([1], [1], [0]), "at least one word"), (([], [], []), "got 0, 0 and 0")],
)
def test_what_cannot_be_compared_is_told(arguments: tuple[list[int], list[int], list[int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        difference(*arguments)
    with pytest.raises(ValueError, match="confidence is in"):
        difference([1], [1], [1], confidence=95)
