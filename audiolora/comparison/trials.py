"""One training of a comparison, and the file it leaves: a trial that has its file is not run again.

trials/WAY/LR-SEED.json   what came out
trials/WAY/costs.json     what a step takes
trials/WAY/log.txt        what training said
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from audiolora.bootstrap import bootstrap_ratio
from audiolora.files import write_json


@dataclass(frozen=True)
class Scores:
    """Errors by unit of a test set, an utterance or a device; their rate is Σ errors / Σ weights.

    Args:
        errors: wrong words of each utterance; MASE of each device.
        weights: words of each utterance; 1 for a device.
    """

    errors: tuple[float, ...]
    weights: tuple[float, ...]

    @property
    def rate(self) -> float:
        """Of all units together."""
        return sum(self.errors) / sum(self.weights)


@dataclass(frozen=True)
class Trial:
    """One training and what it came to.

    Args:
        way: of `comparison.ways`.
        learning_rate: None for the frozen base.
        seed: of start and order.
        dev: error rate on the development split, which chooses the learning rate; infinite where the training diverged.
        test: on the test split; empty where the training diverged.
        trained: parameters with a gradient.
        shipped_bytes: of the file that a deployment would add to the base.
        seconds: of the training.
        peak_bytes: the most memory that its process took above the loaded base.
        ranks: of each group of targets, where there are adapters.
    """

    way: str
    learning_rate: float | None
    seed: int
    dev: float
    test: Scores
    trained: int
    shipped_bytes: int
    seconds: float
    peak_bytes: int
    ranks: Mapping[str, int] | None = None

    @property
    def diverged(self) -> bool:
        """Whether no loss of the training was finite: its learning rate is not chosen."""
        return not math.isfinite(self.dev)


@dataclass(frozen=True)
class Costs:
    """What a training step of a way costs.

    Args:
        step_over_full: its time over that of full tuning, side by side in one process (median of ratios).
    """

    step_over_full: float


@dataclass(frozen=True)
class Interval:
    """A mean over seeds, and the 95 % interval of a bootstrap over units."""

    value: float
    low: float
    high: float


def trial_path(folder: Path, way: str, learning_rate: float | None, seed: int) -> Path:
    """Where a trial's file lies."""
    rate = "frozen" if learning_rate is None else f"{learning_rate:g}"
    return folder / "trials" / way / f"{rate}-{seed}.json"


def write_trial(folder: Path, trial: Trial) -> None:
    """Leave a trial's file, whole or not at all."""
    path = trial_path(folder, trial.way, trial.learning_rate, trial.seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    says = asdict(trial) | ({} if math.isfinite(trial.dev) else {"dev": None})  # JSON has no infinity
    write_json(path, says)


def read_trials(folder: Path, way: str) -> list[Trial]:
    """The trials of a way that are done.

    Raises:
        ValueError: a file that is not what `write_trial` leaves.
    """
    return [_trial(path) for path in sorted((folder / "trials" / way).glob("*-*.json"))]


def write_costs(folder: Path, way: str, costs: Costs) -> None:
    """Leave a way's costs."""
    path = folder / "trials" / way / "costs.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, asdict(costs))


def read_costs(folder: Path, way: str) -> Costs | None:
    """A way's costs, or None if they were not measured yet."""
    path = folder / "trials" / way / "costs.json"
    return Costs(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


def chosen_rate(trials: Sequence[Trial]) -> float | None:
    """The learning rate with the lowest development error on the first seed; of equal ones the smaller.

    Example:
        >>> chosen_rate([])  # nothing was trained: the frozen base
    """
    rated = [trial for trial in trials if trial.learning_rate is not None]
    if not rated:
        return None
    first = min(trial.seed for trial in rated)
    tried = [trial for trial in rated if trial.seed == first]
    return min(tried, key=lambda trial: (trial.dev, trial.learning_rate)).learning_rate


def interval(trials: Sequence[Trial], *, seed: int = 0) -> Interval:
    """The mean error rate over seeds, with a bootstrap over units: the same units are drawn for each seed.

    Args:
        trials: of one way at one learning rate, all scored on the same units.
        seed: of the bootstrap.

    Raises:
        ValueError: trials that were scored on other units.
    """
    return _interval(_errors(trials), np.array(trials[0].test.weights), seed)


def difference(trials: Sequence[Trial], others: Sequence[Trial], *, seed: int = 0) -> Interval:
    """How much larger the error rate is than another way's, paired: both are scored on the units that are drawn.

    Two ways are told apart where the interval leaves 0 out; intervals of their own may overlap all the same.

    Raises:
        ValueError: trials that were scored on other units.
    """
    errors = _errors([*trials, *others])
    mine, theirs = errors[: len(trials)], errors[len(trials) :]
    return _interval((mine.mean(0) - theirs.mean(0))[None], np.array(trials[0].test.weights), seed)


def _errors(trials: Sequence[Trial]) -> np.ndarray:
    """(trials, units)."""
    if any(trial.test.weights != trials[0].test.weights for trial in trials):
        names = ", ".join(dict.fromkeys(trial.way for trial in trials))
        raise ValueError(f"{names}: its trials were scored on different test sets; start the run anew with --fresh")
    return np.array([trial.test.errors for trial in trials])


def _interval(errors: np.ndarray, weights: np.ndarray, seed: int) -> Interval:
    found = bootstrap_ratio(errors.mean(0), weights, seed=seed)
    return Interval(found.value, found.low, found.high)


def _trial(path: Path) -> Trial:
    try:
        says: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        test = Scores(**{name: tuple(values) for name, values in says.pop("test").items()})
        dev = says.pop("dev")
        return Trial(test=test, dev=math.inf if dev is None else dev, **says)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path}: not a trial of a comparison ({error}); start the run anew with --fresh") from None
