"""Chunks of a fleet spread over the machines of a Ray cluster; needs the extra ``audiolora[ray]``.

A chunk is trained from the bytes of the base and its own rows, with the driver's number of threads, so the adapters are
those of a training without Ray. No machine needs the run's folder: what a chunk came to goes back to the driver, which
writes it. A worker that dies takes one chunk's work with it; Ray begins the chunk again on another.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from audiolora.series.bases import load_base
from audiolora.series.fleet_settings import FleetSettings
from audiolora.series.fleet_times import FleetTimes
from audiolora.series.fleet_training import Trained, Watch, train_chunk
from audiolora.series.forecaster import Forecaster

_RETRIES = 10  # of a chunk whose worker died


def train_on_ray(
    base: Forecaster,
    chunks: Mapping[str, pd.DataFrame],
    times: FleetTimes,
    settings: FleetSettings,
    *,
    address: str | None = None,
    watch: Watch | None = None,
) -> Iterator[tuple[str, Trained]]:
    """Train the chunks on a Ray cluster, as many at once as it has CPUs.

    Args:
        base: over a `TCNForecaster`, its scaler fitted.
        chunks: name → long frame.
        times: when.
        settings: how.
        address: of a running cluster (``"auto"``, ``"ray://head:10001"``); None begins one on this machine, unless one
            is connected already.
        watch: called with the histories of a chunk that is done.

    Yields:
        The chunk's name and what it came to, as they are done.

    Raises:
        ImportError: Ray is not installed.
        RuntimeError: a chunk's workers died again and again; those that were yielded are whole.
    """
    try:
        import ray
    except ImportError as error:
        raise ImportError('--engine ray needs Ray; pip install "audiolora[ray]"') from error
    threads, began = torch.get_num_threads(), not ray.is_initialized()
    if began:
        ray.init(address=address, include_dashboard=False, log_to_driver=False)
    try:
        shared = ray.put(_packed(base))
        # One CPU a chunk, whatever the threads: Ray would hand a machine with fewer cores than that no chunk at all.
        task = ray.remote(_train).options(num_cpus=1, max_retries=_RETRIES, name="audiolora chunk")
        waiting = {task.remote(shared, frame, times, settings, threads): name for name, frame in chunks.items()}
        while waiting:
            (done,), _ = ray.wait(list(waiting), num_returns=1)
            name = waiting.pop(done)
            try:
                trained = ray.get(done)
            except ray.exceptions.WorkerCrashedError as error:
                raise RuntimeError(
                    f"{name}: its workers died {_RETRIES + 1} times, of memory perhaps; take a smaller --chunk. The "
                    "same command goes on with the chunks that are not done"
                ) from error
            if watch is not None:
                watch(trained.history)
            yield name, trained
    finally:
        if began:
            ray.shutdown()


def _packed(base: Forecaster) -> dict[str, bytes]:
    """The base as the bytes of its files: weight-normed modules do not pickle."""
    with tempfile.TemporaryDirectory(prefix="audiolora-base-") as folder:
        base.save(Path(folder) / "base")
        return {path.name: path.read_bytes() for path in (Path(folder) / "base").iterdir()}


def _train(
    packed: dict[str, bytes], frame: pd.DataFrame, times: FleetTimes, settings: FleetSettings, threads: int
) -> Any:
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory(prefix="audiolora-base-") as folder:
        for name, content in packed.items():
            (Path(folder) / name).write_bytes(content)
        base = load_base(Path(folder))
    return train_chunk(base, frame, times, settings)
