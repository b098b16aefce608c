"""Trials one after another in a process a way: here, several at once, or on a Ray cluster.

A way gets a process of its own, so that the memory it takes is its own, and so that nothing of one way reaches another.
"""

from __future__ import annotations

import math
import os
import resource
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from multiprocessing import connection, get_context, parent_process
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
from torch import nn

from audiolora.comparison.task import OpenTask, Task
from audiolora.comparison.trials import (
    Costs,
    Scores,
    Trial,
    chosen_rate,
    read_costs,
    read_trials,
    trial_path,
    write_costs,
    write_trial,
)
from audiolora.comparison.ways import WAYS, Prepared, prepared, shipped_bytes
from audiolora.diverging import DivergedError

ENGINES = ("local", "ray")
_STEPS, _WARM = 12, 3
_LOST = math.inf, Scores((), ())


@dataclass(frozen=True)
class Grid:
    """What is tried of each way.

    Args:
        learning_rates: of adapters; other ways take a multiple (`ways.Way.rate`). The best on the development split is
            chosen with the first seed.
        seeds: how many are trained at the chosen rate, from ``first_seed`` on.
        parameters: that an adapter has, as near as its ranks come.
        first_seed: the rate is chosen with this one.

    Raises:
        ValueError: no learning rate, one that is not positive, no seed, no parameters.
    """

    learning_rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2)
    seeds: int = 3
    parameters: int = 150_000
    first_seed: int = 0

    def __post_init__(self) -> None:
        if not self.learning_rates or not all(0 < rate < 1 for rate in self.learning_rates):
            raise ValueError(f"learning_rates must lie in (0, 1), got {self.learning_rates}; try 1e-3 3e-3")
        if self.seeds < 1 or self.parameters < 1:
            raise ValueError(f"seeds and parameters must be positive, got {self.seeds} and {self.parameters}")


def trials_of(grid: Grid, way: str) -> int:
    """How many trainings a way takes."""
    return 1 if way == "frozen" else len(grid.learning_rates) + grid.seeds - 1


def run_ways(
    task: Task,
    ways: Sequence[str],
    grid: Grid,
    folder: Path,
    *,
    engine: str = "local",
    jobs: int = 1,
    threads: int = 1,
    address: str | None = None,
) -> Iterator[str]:
    """Run what is not done of each way. A rate at which training diverges is tried, and never chosen.

    Args:
        task: prepared in ``folder``.
        ways: of `ways.WAYS`.
        grid: what is tried.
        folder: where the trials' files go; with Ray every machine must see it.
        engine: ``"local"`` or ``"ray"``.
        jobs: ways at once, here.
        threads: of torch, a process.
        address: of a Ray cluster that runs.

    Yields:
        Each way that is done.

    Raises:
        ValueError: an unknown engine, or what a way's training raises (the way is named).
        RuntimeError: a way's process was killed; what is done has its files.
    """
    if engine not in ENGINES:
        raise ValueError(f"engine must be one of {', '.join(ENGINES)}, got {engine!r}")
    left = [way for way in ways if not is_done(grid, folder, way)]
    yield from (way for way in ways if way not in left)
    if engine == "ray" and left:
        from audiolora.comparison.on_ray import run_on_ray

        yield from run_on_ray(task, left, grid, folder, threads=threads, address=address)
    elif left:
        with ThreadPoolExecutor(jobs) as pool:
            waiting = {pool.submit(_in_a_process, task, way, grid, folder, threads): way for way in left}
            try:
                for future in as_completed(waiting):
                    future.result()
                    yield waiting[future]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise


def _in_a_process(task: Task, way: str, grid: Grid, folder: Path, threads: int) -> None:
    with ProcessPoolExecutor(1, get_context("spawn"), _end_with_parent) as alone:
        try:
            alone.submit(run_way, task, way, grid, folder, threads).result()
        except BrokenProcessPool:
            raise RuntimeError(
                f"{way}: its process was killed, for memory perhaps; take fewer --jobs. The same command goes on"
            ) from None


def _end_with_parent() -> None:
    """In a way's process: a killed comparison must not go on behind the back of the one that continues it."""

    def watch(parent: BaseProcess) -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    parent = parent_process()
    assert parent is not None
    threading.Thread(target=watch, args=(parent,), daemon=True).start()


def is_done(grid: Grid, folder: Path, way: str) -> bool:
    """Whether every trial of a way has its file, and its costs."""
    trials = read_trials(folder, way)
    best = chosen_rate(trials)
    wanted: set[tuple[float | None, int]] = {(rate, grid.first_seed) for rate in rates_of(grid, way)}
    wanted |= {(best, grid.first_seed + i) for i in range(grid.seeds if way != "frozen" else 1)}
    return wanted <= {(t.learning_rate, t.seed) for t in trials} and read_costs(folder, way) is not None


def rates_of(grid: Grid, way: str) -> tuple[float, ...]:
    """The learning rates that a way tries."""
    return () if way == "frozen" else tuple(rate * WAYS[way].rate for rate in grid.learning_rates)


def run_way(task: Task, way: str, grid: Grid, folder: Path, threads: int = 1) -> None:
    """Every trial of one way that is not done, then its costs; in this process. What training says is in its log.txt.

    Raises:
        ValueError: what preparing or training the way raises, with the way in front.
    """
    torch.set_num_threads(threads)
    log = folder / "trials" / way / "log.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    # Bars and losses of several trainings at once would be unreadable on one terminal.
    with log.open("a", encoding="utf-8") as file, redirect_stdout(file), redirect_stderr(file):
        _run_way(task, way, grid, folder)


def _run_way(task: Task, way: str, grid: Grid, folder: Path) -> None:
    opened = task.open(folder)
    before = _resident_bytes()
    try:
        if way == "frozen":
            _once(opened, way, None, grid.first_seed, grid, folder, before)
        else:
            for rate in rates_of(grid, way):
                _once(opened, way, rate, grid.first_seed, grid, folder, before)
            trials = read_trials(folder, way)
            if all(trial.diverged for trial in trials):
                raise ValueError("no learning rate that was tried led to a finite loss; try smaller --learning-rates")
            best = chosen_rate(trials)
            for seed in range(grid.first_seed + 1, grid.first_seed + grid.seeds):
                _once(opened, way, best, seed, grid, folder, before)
        if read_costs(folder, way) is None:
            write_costs(folder, way, Costs(_step_over_full(opened, way, grid)))
    except ValueError as error:
        raise ValueError(f"{way}: {error}") from error


def _once(
    opened: OpenTask, way: str, rate: float | None, seed: int, grid: Grid, folder: Path, loaded_bytes: int
) -> None:
    if trial_path(folder, way, rate, seed).is_file():
        return
    made = _prepared(opened, way, grid, seed)
    begin = time.monotonic()
    diverged = False
    if rate is not None:
        with tempfile.TemporaryDirectory(prefix="audiolora-trial-") as scratch:
            try:
                opened.fit(made.net, rate, seed, Path(scratch))
            except DivergedError:
                if seed != grid.first_seed:  # it was the best rate: no other may stand in for it unsaid
                    raise
                diverged = True
    seconds, peak = time.monotonic() - begin, max(0, _peak_bytes() - loaded_bytes)
    trained = sum(parameter.numel() for parameter in made.net.parameters() if parameter.requires_grad)
    dev, test = (opened.score(made.net, "dev").rate, opened.score(made.net, "test")) if not diverged else _LOST
    write_trial(
        folder, Trial(way, rate, seed, dev, test, trained, shipped_bytes(made.net), seconds, peak, made.ranks or None)
    )


def _step_over_full(opened: OpenTask, way: str, grid: Grid) -> float:
    """Forward, backward and AdamW, in turns with full tuning."""
    if way in ("frozen", "full"):
        return 0.0 if way == "frozen" else 1.0
    steps = [_stepper(opened, _prepared(opened, each, grid, 0).net.train()) for each in (way, "full")]
    ratios = []
    for i in range(_STEPS + _WARM):
        mine, full = (step() for step in steps)
        if i >= _WARM:
            ratios.append(mine / full)
    return statistics.median(ratios)


def _prepared(opened: OpenTask, way: str, grid: Grid, seed: int) -> Prepared:
    return prepared(opened.base(), way, head=opened.head, parameters=grid.parameters, steps=opened.steps, seed=seed)


def _stepper(opened: OpenTask, net: nn.Module) -> Callable[[], float]:
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=0.0)

    def step() -> float:
        begin = time.perf_counter()
        optimizer.zero_grad()
        opened.loss(net).backward()
        optimizer.step()
        return time.perf_counter() - begin

    return step


def _resident_bytes() -> int:
    """What this process holds now, where the system says so; else the most it ever held."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return _peak_bytes()
    return pages * resource.getpagesize()


def _peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
