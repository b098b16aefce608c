"""The interval of an error rate and of a difference of two: a percentile bootstrap over the units of a test set.

Units are what a test set samples: utterances, or devices. Two systems that were scored on the same units are resampled
together (Bisani and Ney, ICASSP 2004), so that what makes a unit hard for both does not widen the interval.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

# Bounds the bootstrap's index matrix to 16 MB whatever the size of the test set.
_BATCH_ELEMENTS = 2_000_000


@dataclass(frozen=True, eq=False)
class Bootstrapped:
    """Σ errors / Σ weights, its interval, and the same ratio of each resample, (resamples,)."""

    value: float
    low: float
    high: float
    resampled: np.ndarray


def bootstrap_ratio(
    errors: Any, weights: Any, *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Bootstrapped:
    """Σ errors / Σ weights with its percentile bootstrap interval over units, by SciPy.

    Args:
        errors: (units,) of a system, or the difference of two systems' errors.
        weights: (units,) what they are divided by, such as the words of each utterance.
        confidence: level of the interval, between 0 and 1.
        resamples: how often the units are drawn anew.
        seed: the same seed gives the same interval.

    Returns:
        Fractions. One unit alone has no spread to resample: its interval is its value.

    Example:
        >>> bootstrap_ratio([1, 0, 1, 0], [2, 2, 2, 2]).value
        0.25
    """
    from scipy.stats import bootstrap

    errors, weights = np.asarray(errors, np.float64), np.asarray(weights, np.float64)

    def rate(e: np.ndarray, w: np.ndarray, axis: int = -1) -> np.ndarray:
        found: np.ndarray = e.sum(axis=axis) / w.sum(axis=axis)
        return found

    value = float(rate(errors, weights))
    if len(errors) == 1:
        return Bootstrapped(value, value, value, np.full(resamples, value))
    found = bootstrap(
        (errors, weights),
        rate,
        paired=True,
        vectorized=True,
        method="percentile",
        confidence_level=confidence,
        n_resamples=resamples,
        batch=max(1, _BATCH_ELEMENTS // len(errors)),
        rng=np.random.default_rng(seed),
    )
    low, high = (float(end) for end in found.confidence_interval)
    return Bootstrapped(value, low, high, found.bootstrap_distribution)
