"""Whether one system makes fewer errors than another on the same utterances, or was lucky in the utterances.

Two tests of matched pairs, an utterance a pair: the bootstrap of the difference (Bisani and Ney, ICASSP 2004), with the
share of resamples in which the second system is better; and the test of Gillick and Cox (ICASSP 1989) that the mean
difference of errors is zero, as SciPy's paired t-test. NIST's sctk cuts long recordings into segments between words
that both systems have right; here an utterance is a segment.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from audiolora.bootstrap import bootstrap_ratio


@dataclass(frozen=True)
class Difference:
    """How the second system's error rate differs from the first's; below zero it is better.

    Attributes:
        points: difference of the rates, percentage points.
        low, high: its bootstrap interval.
        relative: the difference over the first's rate, percent; None where the first makes no error.
        better: share of resamples with fewer errors, half of those with as many; 0.5 for equal systems.
        p_value: two-sided, of the matched-pairs test; None for a single utterance.
        wins, ties, losses: utterances with fewer, as many and more errors than the first system makes.
        confidence: level of the interval.
    """

    points: float
    low: float
    high: float
    relative: float | None
    better: float
    p_value: float | None
    wins: int
    ties: int
    losses: int
    confidence: float = 0.95

    @property
    def told_apart(self) -> bool:
        """True where the interval leaves zero out; never by a single utterance, which has no interval."""
        return self.wins + self.ties + self.losses > 1 and (self.low > 0 or self.high < 0)


def difference(
    first: Sequence[int],
    second: Sequence[int],
    units: Sequence[int],
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Difference:
    """Compare two systems on the same utterances.

    Args:
        first, second: errors of each utterance.
        units: words (or characters) of each utterance's reference.
        confidence: level of the interval, between 0 and 1.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        ValueError: lists of different lengths, none, an utterance without a word, or a number out of its range.

    Example:
        >>> difference([2, 1, 0, 3], [1, 1, 0, 1], [5, 5, 5, 5]).points
        -15.0
    """
    if not len(first) == len(second) == len(units) or not len(units):
        raise ValueError(
            f"errors of both systems and units are needed for each utterance, got {len(first)}, {len(second)} and "
            f"{len(units)}"
        )
    if min(units) < 1:
        raise ValueError("every utterance needs at least one word in its reference")
    if not 0 < confidence < 1 or resamples < 1:
        raise ValueError(f"confidence is in (0, 1) and resamples positive, got {confidence} and {resamples}")
    changes = np.asarray(second, np.float64) - np.asarray(first, np.float64)
    found = bootstrap_ratio(100 * changes, units, confidence=confidence, resamples=resamples, seed=seed)
    before = float(np.sum(first)) / float(np.sum(units))
    return Difference(
        points=found.value,
        low=found.low,
        high=found.high,
        relative=None if before == 0 else found.value / before,  # points over a fraction: percent
        better=float((found.resampled < 0).mean() + (found.resampled == 0).mean() / 2),
        p_value=_matched_pairs(changes),
        wins=int((changes < 0).sum()),
        ties=int((changes == 0).sum()),
        losses=int((changes > 0).sum()),
        confidence=confidence,
    )


def _matched_pairs(changes: np.ndarray) -> float | None:
    if len(changes) < 2:
        return None
    if np.ptp(changes) == 0:  # no spread: equal systems, or one better by the same everywhere
        return 1.0 if changes[0] == 0 else 0.0
    from scipy.stats import ttest_1samp

    p_value = float(ttest_1samp(changes, 0.0).pvalue)
    return None if math.isnan(p_value) else p_value
