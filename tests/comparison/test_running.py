"""Every way gets its trials, each once; an interruption loses one training; here and in processes of their own."""

from __future__ import annotations

import math
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from audiolora.comparison.running import Grid, is_done, run_way, run_ways, trials_of
from audiolora.comparison.trials import chosen_rate, interval, read_costs, read_trials, trial_path
from tests.comparison.tiny_task import TinyTask

GRID = Grid(learning_rates=(1e-3, 3e-2), seeds=2, parameters=30)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    TinyTask().prepare(tmp_path)
    return tmp_path


def test_a_way_is_tried_at_each_rate_and_then_with_each_seed_at_the_best(folder: Path) -> None:
    run_way(TinyTask(), "lora", GRID, folder)
    trials = read_trials(folder, "lora")
    assert len(trials) == trials_of(GRID, "lora") == 3
    best = chosen_rate(trials)
    assert best == 3e-2  # it learns faster
    assert {(t.learning_rate, t.seed) for t in trials} == {(1e-3, 0), (3e-2, 0), (3e-2, 1)}
    run_way(TinyTask(), "frozen", GRID, folder)
    (frozen,) = read_trials(folder, "frozen")
    assert frozen.trained == 0 and frozen.learning_rate is None
    assert min(t.test.rate for t in trials) < frozen.test.rate
    costs = read_costs(folder, "lora")
    assert costs is not None and costs.step_over_full > 0
    assert all(trial.peak_bytes >= 0 for trial in trials)


def test_what_is_done_is_not_done_again(folder: Path) -> None:
    run_way(TinyTask(), "head", GRID, folder)
    before = (folder / "fits.log").read_text()
    assert before.split() == ["0.001", "0", "0.03", "0", "0.03", "1"] and is_done(GRID, folder, "head")
    run_way(TinyTask(), "head", GRID, folder)
    assert (folder / "fits.log").read_text() == before
    trial_path(folder, "head", 3e-2, 1).unlink()
    assert not is_done(GRID, folder, "head")
    run_way(TinyTask(), "head", GRID, folder)
    assert (folder / "fits.log").read_text() == before + "0.03 1\n"


def test_other_ways_take_a_multiple_of_the_rates(folder: Path) -> None:
    run_way(TinyTask(), "full", GRID, folder)
    assert {trial.learning_rate for trial in read_trials(folder, "full")} == {1e-4, 3e-3}


def test_an_error_names_the_way(folder: Path) -> None:
    with pytest.raises(ValueError, match="lora: the loss was not finite"):
        run_way(TinyTask(fails="the loss was not finite"), "lora", GRID, folder)
    with pytest.raises(ValueError, match="engine must be one of local, ray, got 'slurm'"):
        list(run_ways(TinyTask(), ["frozen"], GRID, folder, engine="slurm"))
    for wrong in ({"learning_rates": ()}, {"learning_rates": (2.0,)}, {"seeds": 0}, {"parameters": 0}):
        with pytest.raises(ValueError, match="got"):
            Grid(**wrong)


def test_a_rate_that_diverges_is_lost_and_the_others_go_on(folder: Path) -> None:
    task = TinyTask(diverges=((3e-2, 0),))
    run_way(task, "head", GRID, folder)
    trials = read_trials(folder, "head")
    assert [t.learning_rate for t in trials if t.diverged] == [3e-2]
    assert chosen_rate(trials) == 1e-3 and is_done(GRID, folder, "head")
    assert (folder / "fits.log").read_text().split() == ["0.001", "0", "0.001", "1"]
    assert math.isfinite(interval([t for t in trials if not t.diverged]).value)


def test_a_way_that_only_diverges_is_an_error(folder: Path) -> None:
    everywhere = TinyTask(diverges=((1e-3, 0), (3e-2, 0)))
    with pytest.raises(ValueError, match="head: no learning rate .* finite loss; try smaller --learning-rates"):
        run_way(everywhere, "head", GRID, folder)
    assert not is_done(GRID, folder, "head")


def test_the_best_rate_that_diverges_with_another_seed_is_an_error(folder: Path) -> None:
    with pytest.raises(ValueError, match="head: no loss was finite, at lr=0.03"):
        run_way(TinyTask(diverges=((3e-2, 1),)), "head", GRID, folder)


RUN = """
from pathlib import Path
from tests.comparison.test_running import GRID, TinyTask, run_ways
list(run_ways(TinyTask(steps=10**9), ["head"], GRID, Path({!r})))
"""


@pytest.mark.slow
def test_a_killed_comparison_trains_no_more(folder: Path) -> None:
    comparison = subprocess.Popen([sys.executable, "-c", RUN.format(str(folder))], cwd=Path(__file__).parents[2])
    while not (folder / "fits.log").exists():
        assert comparison.poll() is None
        time.sleep(0.1)
    way = psutil.Process(int((folder / "pid").read_text()))
    assert way.ppid() == comparison.pid and way.is_running()
    comparison.kill()
    comparison.wait()
    assert not psutil.wait_procs([way], timeout=60)[1]


@pytest.mark.slow
def test_processes_of_their_own_give_the_same(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other")
    TinyTask().prepare(other)
    ways = ["frozen", "lora", "head"]
    assert sorted(run_ways(TinyTask(), ways, GRID, folder, jobs=2)) == sorted(ways)
    for way in ways:
        run_way(TinyTask(), way, GRID, other)
        mine, theirs = (
            {(t.learning_rate, t.seed): t.test for t in read_trials(where, way)} for where in (folder, other)
        )
        assert mine == theirs
    assert list(run_ways(TinyTask(), ways, GRID, folder)) == ways  # at once
    with pytest.raises(ValueError, match="bias: no"):
        list(run_ways(TinyTask(fails="no"), ["bias"], GRID, folder))
