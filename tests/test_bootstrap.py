"""The interval of a ratio against the delta method and a bootstrap by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from audiolora.bootstrap import bootstrap_ratio


def test_the_interval_is_the_delta_methods() -> None:
    rng = np.random.default_rng(0)
    weights = rng.integers(3, 12, 400)
    errors = rng.binomial(weights, 0.2)
    found = bootstrap_ratio(errors, weights, resamples=4000)
    half = 1.96 * math.sqrt(((errors - found.value * weights) ** 2).sum()) / weights.sum()
    assert found.value == errors.sum() / weights.sum()
    assert found.high - found.low == pytest.approx(2 * half, rel=0.08)
    assert found.resampled.shape == (4000,)


def test_large_sets_are_drawn_in_parts_and_say_the_same() -> None:
    errors, weights = np.tile([0, 1, 2], 700_000), np.tile([3, 4, 5], 700_000)
    found = bootstrap_ratio(errors, weights, resamples=5)
    assert found.low <= found.value == 0.25 <= found.high


def test_one_unit_has_no_spread() -> None:
    found = bootstrap_ratio([1], [4])
    assert (found.value, found.low, found.high) == (0.25, 0.25, 0.25)
