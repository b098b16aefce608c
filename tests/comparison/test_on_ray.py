"""Ways over a local Ray cluster: the trials of one machine, a process each, and errors by their own names."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from audiolora.comparison.running import Grid, is_done, run_way, run_ways
from audiolora.comparison.trials import read_costs, read_trials
from tests.comparison.tiny_task import TinyTask

GRID = Grid(learning_rates=(1e-3, 3e-2), seeds=2, parameters=30)
WAYS = ["frozen", "lora", "head"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    TinyTask().prepare(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_the_trials_are_those_of_one_machine(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    pytest.importorskip("ray", reason="audiolora[ray] is not installed; make test-ray")
    here = tmp_path_factory.mktemp("here")
    TinyTask().prepare(here)
    assert sorted(run_ways(TinyTask(), WAYS, GRID, folder, engine="ray")) == sorted(WAYS)
    for way in WAYS:
        run_way(TinyTask(), way, GRID, here)
        mine, theirs = ({(t.learning_rate, t.seed): t.test for t in read_trials(at, way)} for at in (here, folder))
        assert mine == theirs and is_done(GRID, folder, way) and read_costs(folder, way) is not None
    with pytest.raises(ValueError, match=r"\Abias: no\Z"):
        list(run_ways(TinyTask(fails="no"), ["bias"], GRID, folder, engine="ray"))


def test_without_ray_the_extra_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"audiolora\[ray\]"):
        list(run_ways(TinyTask(), ["frozen"], GRID, folder, engine="ray"))
