"""Chunks over a local Ray cluster of two workers, one of them killed: nothing lost, and the adapters of one machine."""

from __future__ import annotations

import threading
import time

import psutil
import pytest
import torch

from audiolora.series.fleet_engines import train_fleet
from audiolora.series.fleet_settings import FleetSettings
from audiolora.series.fleet_times import fleet_times
from audiolora.series.fleet_training import load_trained
from audiolora.series.scaling import Standard
from tests.series.tiny_fleet import fleet, forecaster, tiny_net

SETTINGS = FleetSettings(epochs=12, lr=1e-2, batch_size=8, stride=2, patience=12)
FRAME = fleet(8, steps=24 * 16)
TIMES = fleet_times(FRAME, val="3D", test="2D")
CHUNKS = {f"chunk{i}": FRAME[FRAME["unique_id"].isin([f"pump{2 * i}", f"pump{2 * i + 1}"])] for i in range(4)}


@pytest.fixture(scope="module")
def base():
    found = forecaster(tiny_net(), scaler=Standard().fit(FRAME, until=TIMES.train_until))
    found.net.requires_grad_(False)
    return found


@pytest.fixture(scope="module")
def cluster():
    ray = pytest.importorskip("ray", reason="audiolora[ray] is not installed; make test-ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")  # beside other processes the workers would hardly run at all
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield ray
    ray.shutdown()


def working() -> list[psutil.Process]:
    """The processes below this one that train a chunk now."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if "ray::audiolora chunk" in " ".join(process.cmdline()):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
    return found


@pytest.mark.slow
def test_a_killed_worker_loses_nothing(base, cluster, tmp_path):
    """One worker is killed while both train; the killed chunk begins anew, and everything ends as without Ray."""
    here = train_fleet(base, CHUNKS, TIMES, SETTINGS, out=tmp_path / "here")
    killed, most = [], []

    def kill() -> None:
        end = time.monotonic() + 120
        while not killed and time.monotonic() < end:
            now = working()
            most.append(len(now))
            if len(now) == 2:
                time.sleep(1.0)  # into the training
                if now[0].is_running():
                    now[0].kill()
                    killed.append(now[0].pid)
            time.sleep(0.05)

    killer = threading.Thread(target=kill)
    killer.start()
    seen: set[str] = set()
    there = train_fleet(base, CHUNKS, TIMES, SETTINGS, out=tmp_path / "ray", engine="ray", watch=seen.update)
    killer.join()
    assert killed and max(most) == 2
    assert seen == set(there.values) == {f"pump{i}" for i in range(8)}
    assert list(there.values) == list(here.values)
    assert there.history == here.history
    assert all(torch.equal(there.values[name], row) for name, row in here.values.items())
    assert all(load_trained(tmp_path / "ray" / name) is not None for name in CHUNKS)


@pytest.mark.slow
def test_chunks_that_are_done_are_not_sent_again(base, cluster, tmp_path):
    few = dict(list(CHUNKS.items())[:1])
    first = train_fleet(base, few, TIMES, SETTINGS, out=tmp_path)
    both = train_fleet(base, dict(list(CHUNKS.items())[:2]), TIMES, SETTINGS, out=tmp_path, engine="ray")
    assert all(torch.equal(both.values[name], row) for name, row in first.values.items())
    assert len(both.values) == 4


def test_without_ray_the_extra_is_named(base, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(ImportError, match=r"audiolora\[ray\]"):
        train_fleet(base, CHUNKS, TIMES, SETTINGS, out=tmp_path, engine="ray")
    with pytest.raises(ValueError, match="local, ray"):
        train_fleet(base, CHUNKS, TIMES, SETTINGS, out=tmp_path, engine="spark")
