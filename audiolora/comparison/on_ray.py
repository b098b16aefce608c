"""Ways spread over a Ray cluster; needs the extra ``audiolora[ray]``, and a folder that all machines see."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from audiolora.comparison.task import Task

if TYPE_CHECKING:
    from audiolora.comparison.running import Grid

_RETRIES = 10  # of a way whose worker died; its trials that are done have their files


def run_on_ray(
    task: Task, ways: Sequence[str], grid: Grid, folder: Path, *, threads: int, address: str | None
) -> Iterator[str]:
    """`running.run_way` for each way, as many at once as the cluster has CPUs.

    Raises:
        ImportError: Ray is not installed.
        ValueError: what a way's training raises.
    """
    from audiolora.comparison.running import run_way

    try:
        import ray
    except ImportError as error:
        raise ImportError('--engine ray needs Ray; pip install "audiolora[ray]"') from error
    began = not ray.is_initialized()
    if began:
        ray.init(address=address, include_dashboard=False, log_to_driver=False)
    try:
        # max_calls=1: a process of its own for each way, so that the memory that is measured is the way's.
        remote = ray.remote(num_cpus=1, max_retries=_RETRIES, max_calls=1)(run_way)
        waiting = {remote.remote(task, way, grid, folder.resolve(), threads): way for way in ways}
        while waiting:
            (done,), _ = ray.wait(list(waiting), num_returns=1)
            way = waiting.pop(done)
            try:
                ray.get(done)
            except ray.exceptions.RayTaskError as error:
                raise error.cause from None  # without the worker's traceback in its text
            yield way
    finally:
        if began:
            ray.shutdown()
