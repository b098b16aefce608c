"""One shape of `conv_step.py`, a process of its own: its name in, rows as JSON out.

What an allocator keeps, and so how many pages a step has to fault in anew, depends on the sizes that a process has
freed before; in a process of its own a shape's ratios do not depend on which shapes came before it.
"""

import json
import random
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from conv_columns import SHAPES, Step, encoder_steps, inference_steps, mixed_steps, training_steps

SECONDS = 4.0
"""For one shape and measure; at least `ROUNDS` rounds whatever they take."""
ROUNDS = 7
ENCODER = "wav2vec2.encoder"


@dataclass(frozen=True)
class Row:
    """One cell: a measure of one column against its yardstick on one shape."""

    measure: str
    shape: str
    column: str
    against: str
    ratio: float
    low: float
    high: float
    rounds: int
    threads: int
    device: str
    dtype: str
    note: str = ""


def rows_of(name: str, threads: int, device: str, dtype: str) -> list[Row]:
    """Everything timed on one shape; `ENCODER` is wav2vec2's seven convolutions together."""
    if name == ENCODER:
        return measure("step", name, encoder_steps(device, dtype), "frozen", threads, device, dtype)
    shape = next(shape for shape in SHAPES if shape.name == name)
    rows = measure("step", name, training_steps(shape, device, dtype), "frozen", threads, device, dtype)
    rows += measure("inference", name, inference_steps(shape, device, dtype), "base", threads, device, dtype)
    mixed = mixed_steps(shape, device, dtype)
    return rows + (measure("mixed batch", name, mixed, "one adapter", threads, device, dtype) if mixed else [])


def measure(
    kind: str, shape: str, steps: dict[str, Step], against: str, threads: int, device: str, dtype: str
) -> list[Row]:
    """Every column's time as a ratio to the yardstick's, round by round."""
    for step in steps.values():
        step.run()
        step.run()
    times: dict[str, list[float]] = {name: [] for name in steps}
    order, rng = list(steps), random.Random(0)
    began = time.perf_counter()
    while len(times[against]) < ROUNDS or (time.perf_counter() - began < SECONDS and len(times[against]) < 200):
        rng.shuffle(order)
        for name in order:
            times[name].append(clock(steps[name].run, device))
    rows = []
    for name in steps:
        ratios = [mine / yard for mine, yard in zip(times[name], times[against], strict=True)]
        low, _, high = statistics.quantiles(ratios, n=4)
        median = statistics.median(ratios)
        note = steps[name].note
        rows.append(Row(kind, shape, name, against, median, low, high, len(ratios), threads, device, dtype, note))
    return rows


def clock(step: Callable[[], Any], device: str) -> float:
    """Seconds of one step."""
    if device == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


if __name__ == "__main__":
    shape, threads, device, dtype = sys.argv[1:]
    torch.set_num_threads(int(threads))
    json.dump([asdict(row) for row in rows_of(shape, int(threads), device, dtype)], sys.stdout)
