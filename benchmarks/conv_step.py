"""What a training step through an adapted convolution costs: ours, PEFT, loralib's dense way, full tuning, frozen.

    python benchmarks/conv_step.py                      # every shape, float32, one and two threads, time and memory
    python benchmarks/conv_step.py --only tcn64.d1 --threads 1
    python benchmarks/conv_step.py --device cuda --dtype bfloat16

A step is forward and backward to the input and to whatever the column trains. All columns of a shape take turns in one
process, which does nothing else, in a new random order each round; a ratio is taken within its round, and the table
shows the median over rounds. PEFT stands only where it computes the right function. Rows are appended to
benchmarks/results/conv_step.csv.
"""

import csv
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import torch
from conv_columns import SHAPES, Shape, training_steps
from conv_time import ENCODER, Row
from cyclopts import run
from rich.console import Console
from rich.progress import track
from rich.table import Table

RESULTS = Path(__file__).parent / "results" / "conv_step.csv"


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
    shapes = [shape.name for shape in SHAPES if only in shape.name]
    names = [*shapes, *([ENCODER] if only in ENCODER else [])]
    for count in threads if device == "cpu" else threads[:1]:
        rows: list[Row] = []
        for name in track(names, f"{count} thread{'s' * (count > 1)}"):
            found = timed(name, count, device, dtype)
            save(found)
            rows += found
        if memory and count == threads[0]:
            found = peak_memory(shapes, count, device, dtype)
            save(found)
            rows += found
        show(rows, f"{count} thread{'s' * (count > 1)}, {device}, {dtype}")


def timed(name: str, threads: int, device: str, dtype: str) -> list[Row]:
    """The ratios of one shape, measured in a process of its own."""
    command = [sys.executable, str(Path(__file__).with_name("conv_time.py")), name, str(threads), device, dtype]
    return [Row(**row) for row in json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)]


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


def save(rows: list[Row], path: Path = RESULTS) -> None:
    """Append the rows, each with the machine and the versions."""
    machine = torch.cuda.get_device_name() if rows and rows[0].device == "cuda" else cpu_name()
    fixed = {"date": time.strftime("%Y-%m-%d %H:%M", time.gmtime()), "machine": machine}
    fixed |= {name: version(name) for name in ("audiolora", "torch", "peft")}
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
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
