"""What a training step through an adapted convolution costs: ours, PEFT, loralib's dense way, full tuning, frozen.

    python benchmarks/conv_step.py                      # every shape, float32, one and two threads, time and memory
    python benchmarks/conv_step.py --only tcn64.d1 --threads 1
    python benchmarks/conv_step.py --device cuda --dtype bfloat16

A step is forward and backward to the input and to whatever the column trains. All columns of a shape take turns in one
process, in a new random order each round; a ratio is taken within its round, and the table shows the median over
rounds. PEFT stands only where it computes the right function. Rows are appended to benchmarks/results/conv_step.csv.
"""

import csv
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from conv_columns import SHAPES, Shape, Step, encoder_steps, inference_steps, mixed_steps, training_steps
from cyclopts import run
from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results" / "conv_step.csv"
SECONDS = 4.0
"""For one shape; at least `ROUNDS` rounds whatever they take."""
ROUNDS = 7


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


def main(
    *,
    only: str = "",
    threads: tuple[int, ...] = (1, 2),
    device: str = "cpu",
    dtype: str = "float32",
    memory: bool = True,
) -> None:
    """Measure, print the table and append it to the CSV.

    Args:
        only: shapes whose name contains this.
        threads: of torch; on CUDA one value is enough.
        device: cpu or cuda.
        dtype: float32 or bfloat16.
        memory: also measure peak memory (in a process of its own on CPU).
    """
    setting = {"device": device, "dtype": dtype}
    shapes = [shape for shape in SHAPES if only in shape.name]
    for count in threads if device == "cpu" else threads[:1]:
        torch.set_num_threads(count)
        title = f"{count} thread{'s' * (count > 1)}, {device}, {dtype}"

        def timed(kind: str, steps: dict[str, Step], name: str, against: str, count: int = count) -> list[Row]:
            return measure(kind, name, steps, against, count, **setting)

        rows = [row for s in shapes for row in timed("step", training_steps(s, **setting), s.name, "frozen")]
        if only in "wav2vec2.encoder":
            rows += timed("step", encoder_steps(**setting), "wav2vec2.encoder", "frozen")
        report(rows, title)
        report(
            [row for s in shapes for row in timed("inference", inference_steps(s, **setting), s.name, "base")], title
        )
        mixed = mixed_steps(only, **setting)
        report(
            [row for name, steps in mixed.items() for row in timed("mixed batch", steps, name, "one adapter")], title
        )
        if memory and count == threads[0]:
            report(peak_memory([shape.name for shape in shapes], count, **setting), title)


def report(rows: list[Row], title: str) -> None:
    """Append to the CSV, and print."""
    if rows:
        save(rows)
        show(rows, title)


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


def peak_memory(names: list[str], threads: int, device: str, dtype: str) -> list[Row]:
    """Peak memory of a step, over what stood before its model and input were made, as a ratio to the frozen step's."""
    if device == "cuda":
        peaks = {
            name: {column: cuda_peak(name, column, dtype) for column in columns(name, device, dtype)} for name in names
        }
    else:
        # Every block above 64 KiB from the system and back to it: else the allocator's own stock is measured.
        environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": str(threads)}
        command = [sys.executable, str(Path(__file__).with_name("conv_memory.py")), dtype, *names]
        peaks = json.loads(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)
    return [
        Row("peak memory", name, column, "frozen", peak / found["frozen"], 0, 0, 1, threads, device, dtype)
        for name, found in peaks.items()
        for column, peak in found.items()
    ]


def columns(name: str, device: str, dtype: str) -> list[str]:
    return list(training_steps(shape_named(name), device, dtype))


def shape_named(name: str) -> Shape:
    return next(shape for shape in SHAPES if shape.name == name)


def cuda_peak(name: str, column: str, dtype: str) -> float:
    """Bytes."""
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    step = training_steps(shape_named(name), "cuda", dtype, only=column)[column]
    step.run()
    torch.cuda.reset_peak_memory_stats()
    step.run()
    return float(torch.cuda.max_memory_allocated() - before)


def save(rows: list[Row]) -> None:
    """Append the rows, each with the machine and the versions."""
    machine = torch.cuda.get_device_name() if rows and rows[0].device == "cuda" else cpu_name()
    fixed = {"date": time.strftime("%Y-%m-%d %H:%M", time.gmtime()), "machine": machine}
    fixed |= {name: version(name) for name in ("audiolora", "torch", "peft")}
    new = not RESULTS.exists()
    with RESULTS.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*fixed, *Row.__dataclass_fields__])
        if new:
            writer.writeheader()
        for row in rows:
            values = {k: round(v, 4) if isinstance(v, float) else v for k, v in asdict(row).items()}
            writer.writerow({**fixed, **values})


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return f"{names[0]}, {len(names)} cores" if names else "unknown CPU"


def show(rows: list[Row], title: str) -> None:
    """A table a measure, and under it the geometric mean over the wide shapes."""
    for kind in dict.fromkeys(row.measure for row in rows):
        mine = [row for row in rows if row.measure == kind]
        names = list(dict.fromkeys(row.column for row in mine if row.column != row.against))
        table = Table(title=f"{kind} / {mine[0].against}: {title}", title_justify="left")
        for heading in ("shape", *names, "gradients"):
            table.add_column(heading, justify="left" if heading == "shape" else "right", no_wrap=True)
        for shape in dict.fromkeys(row.shape for row in mine):
            cells = {row.column: row for row in mine if row.shape == shape}
            ratios = [f"{cells[name].ratio:.2f}" if name in cells else "–" for name in names]
            table.add_row(shape, *ratios, cells["LoRA"].note if "LoRA" in cells else "")
        wide = {shape.name for shape in SHAPES if shape.is_wide}
        over = [[row.ratio for row in mine if row.column == name and row.shape in wide] for name in names]
        if any(over):
            means = [f"{statistics.geometric_mean(each):.3f} ({len(each)})" if each else "–" for each in over]
            table.add_section()
            table.add_row("mean, ≥ 64 channels a group", *means, "")
        Console(width=110).print(table)


if __name__ == "__main__":
    run(main)
