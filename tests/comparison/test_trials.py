"""Trials as files, the choice of a learning rate, and the interval over units."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from audiolora.comparison.trials import (
    Costs,
    Scores,
    Trial,
    chosen_rate,
    difference,
    interval,
    read_costs,
    read_trials,
    write_costs,
    write_trial,
)

ONE = Trial("lora", 1e-3, 0, 5.0, Scores((1.0, 3.0), (2.0, 2.0)), 100, 400, 1.5, 2**20, {"conv": 4})


def test_what_is_written_is_read(tmp_path: Path) -> None:
    trials = [ONE, replace(ONE, seed=1, ranks=None), replace(ONE, learning_rate=None, way="frozen")]
    trials.append(replace(ONE, way="full", dev=math.inf, test=Scores((), ())))  # it diverged
    for trial in trials:
        write_trial(tmp_path, trial)
    assert read_trials(tmp_path, "lora") == trials[:2] and read_trials(tmp_path, "frozen") == trials[2:3]
    assert read_trials(tmp_path, "full") == trials[3:] and trials[3].diverged and not trials[0].diverged
    assert read_trials(tmp_path, "dora") == [] and read_costs(tmp_path, "lora") is None
    write_costs(tmp_path, "lora", Costs(0.8))
    assert read_costs(tmp_path, "lora") == Costs(0.8)
    assert len(read_trials(tmp_path, "lora")) == 2  # costs are no trial


def test_a_damaged_trial_is_named(tmp_path: Path) -> None:
    write_trial(tmp_path, ONE)
    path = tmp_path / "trials" / "lora" / "0.001-0.json"
    path.write_text(path.read_text()[:-20])
    with pytest.raises(ValueError, match=r"0.001-0.json: not a trial of a comparison .* --fresh"):
        read_trials(tmp_path, "lora")


def test_the_rate_is_chosen_on_the_development_split_with_the_first_seed() -> None:
    tried = [
        replace(ONE, dev=4.0),
        replace(ONE, learning_rate=3e-3, dev=3.0),
        replace(ONE, learning_rate=1e-2, dev=3.0),
    ]
    later = [replace(ONE, seed=1, dev=0.1), replace(ONE, seed=2, dev=9.0, test=Scores((0.0, 0.0), (2.0, 2.0)))]
    assert chosen_rate(tried + later) == 3e-3  # neither other seeds nor the test split have a say
    assert chosen_rate([replace(ONE, learning_rate=None)]) is None


def test_the_interval_is_a_bootstrap_over_units_of_the_mean_over_seeds() -> None:
    """Against a percentile bootstrap by hand, with draws of its own."""
    draw = np.random.default_rng(3)
    weights = tuple(draw.integers(1, 9, 60).astype(float))
    trials = [replace(ONE, seed=s, test=Scores(tuple(draw.gamma(2.0, size=60)), weights)) for s in range(3)]
    found = interval(trials)
    errors = np.mean([trial.test.errors for trial in trials], axis=0)
    assert found.value == pytest.approx(np.mean([trial.test.rate for trial in trials]))
    rows = draw.integers(60, size=(20_000, 60))
    low, high = np.quantile(errors[rows].sum(1) / np.array(weights)[rows].sum(1), (0.025, 0.975))
    assert (found.low, found.high) == pytest.approx((low, high), rel=0.03)
    alone = interval([replace(ONE, test=Scores((3.0,), (2.0,)))])
    assert (alone.low, alone.value, alone.high) == (1.5, 1.5, 1.5)
    with pytest.raises(ValueError, match="different test sets"):
        interval([trials[0], ONE])


def test_ways_that_differ_on_every_unit_are_told_apart_though_their_intervals_overlap() -> None:
    draw = np.random.default_rng(4)
    weights, errors = (1.0,) * 40, draw.gamma(1.0, size=40)
    one = [replace(ONE, test=Scores(tuple(errors), weights))]
    other = [
        replace(ONE, seed=s, test=Scores(tuple(errors + 0.05 + 0.01 * draw.random(40)), weights)) for s in range(2)
    ]
    assert interval(other).low < interval(one).value < interval(other).high
    found = difference(other, one)
    paired = np.mean([t.test.errors for t in other], axis=0) - errors
    assert found.value == pytest.approx(paired.mean()) and 0 < found.low <= found.value <= found.high
    assert difference(one, other).high < 0 and difference(one, one).value == 0.0
