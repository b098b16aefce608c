"""Training many adapters at once against one after another: PEFT's way, and ours merged and factored.

    python benchmarks/fleet.py                     # every network and size, two threads
    python benchmarks/fleet.py --only tcn32 --sizes 64 --threads 1
    python benchmarks/fleet.py --grow              # time and memory from 1 to 4,096 devices
    python benchmarks/fleet.py --device cuda

A network is a TCN of eight dilated causal convolutions over 192 positions, each with LoRA of rank 4; its padding is
outside of the convolution, and PEFT's factor A is given the dilation that PEFT leaves out, so that all columns compute
the same function. A step is forward, backward and AdamW of every device on its own batch. All columns take turns in one
process a network and size, in a new random order each round; a ratio is taken within its round, and the table shows
the median over rounds. One after another, a few devices are timed and stand for the rest. Rows are appended to
benchmarks/results/fleet.csv.
"""

import json
import random
import resource
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from conv_step import save
from conv_time import Row, clock
from cyclopts import App
from peft import LoraConfig, get_peft_model
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import nn

import audiolora
from audiolora.conv import fused
from audiolora.conv.plan import Path as Way
from audiolora.fleet.training import Run, Settings

RESULTS = Path(__file__).parent / "results" / "fleet.csv"
DILATIONS = (1, 1, 4, 4, 16, 16, 64, 64)
LENGTH, INPUTS, HORIZON, RANK = 192, 5, 24, 4
ROUNDS, SECONDS, ALONE = 9, 6.0, 8
"""Rounds at least, seconds for one case, devices that are timed one after another."""

app = App()


@dataclass(frozen=True)
class Case:
    """A network, the samples of a device a step, and the speed-up over PEFT's way that it must have."""

    name: str
    channels: int
    samples: int
    bound: float


CASES = [Case("tcn16", 16, 1, 8.0), Case("tcn32", 32, 4, 3.5), Case("tcn64", 64, 4, 2.2)]
SIZES = (1, 2, 4, 64, 256)
GROWING = (1, 4, 16, 64, 256, 1024, 4096)


class Causal(nn.Module):
    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels, channels, 3, dilation=dilation)
        self.padding = 2 * dilation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(F.pad(x, (self.padding, 0)))


class TCN(nn.Module):
    """(N, 5, 192) → (N, 24, 192)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.stem = nn.Conv1d(INPUTS, channels, 1)
        self.convs = nn.ModuleList(Causal(channels, dilation) for dilation in DILATIONS)
        self.head = nn.Conv1d(channels, HORIZON, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.stem(x)
        for first, second in zip(self.convs[::2], self.convs[1::2], strict=True):
            h = h + F.gelu(second(F.gelu(first(h))))
        return self.head(h)


def config() -> LoraConfig:
    return LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=[f"convs.{i}.conv" for i in range(len(DILATIONS))])


def one_by_one(case: Case, device: str, way: Way | None) -> Callable[[], None]:
    """`ALONE` devices' steps, each with a model and an optimiser of its own; ``way`` None is PEFT's."""
    steps = []
    for _ in range(ALONE):
        net = TCN(case.channels).to(device)
        if way is None:
            model = get_peft_model(net, config())
            for block in net.convs:
                block.conv.lora_A["default"].dilation = block.conv.base_layer.dilation
        else:
            with audiolora.enabled():
                model = get_peft_model(net, config())
        optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
        x, y = batch(case, device)
        steps.append((model, optimiser, x, y))

    def run() -> None:
        path = fused.gradient_path
        fused.gradient_path = path if way is None else lambda *_: way
        try:
            for model, optimiser, x, y in steps:
                optimiser.zero_grad()
                F.mse_loss(model(x), y).backward()
                optimiser.step()
        finally:
            fused.gradient_path = path

    return run


def batch(case: Case, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    shape = case.samples, INPUTS, LENGTH
    return torch.randn(shape, device=device), torch.randn(case.samples, HORIZON, LENGTH, device=device)


def together(case: Case, device: str, size: int) -> Callable[[], None]:
    """One step of a fleet of ``size`` devices."""
    ids = [str(i) for i in range(size)]
    fleet = audiolora.Fleet(TCN(case.channels).to(device), config(), ids)
    data = {id: batch(case, device) for id in ids}
    run = Run(fleet, data, {}, Settings(steps=10**9, batch_size=case.samples))
    run.start()
    return run.step


def measure(case: Case, size: int, device: str, threads: int) -> list[Row]:
    """Each column's time a device as a ratio to the fleet's, round by round."""
    columns = {
        "PEFT": (one_by_one(case, device, None), ALONE),
        "merged": (one_by_one(case, device, Way.DENSE), ALONE),
        "factored": (one_by_one(case, device, Way.LOW_RANK), ALONE),
        "fleet": (together(case, device, size), size),
    }
    for run, _ in columns.values():
        run()
        run()
    times: dict[str, list[float]] = {name: [] for name in columns}
    order, rng, began = list(columns), random.Random(0), time.perf_counter()
    while len(times["fleet"]) < ROUNDS or (time.perf_counter() - began < SECONDS and len(times["fleet"]) < 200):
        rng.shuffle(order)
        for name in order:
            run, devices = columns[name]
            again = max(1, ALONE // devices)  # a small fleet's step is too short for the clock
            times[name].append(sum(clock(run, device) for _ in range(again)) / (again * devices))
    return [row_of(case, size, name, times, threads, device) for name in columns]


def row_of(case: Case, size: int, name: str, times: dict[str, list[float]], threads: int, device: str) -> Row:
    ratios = [mine / yard for mine, yard in zip(times[name], times["fleet"], strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4)
    note = f"{statistics.median(times[name]) * 1e3:.3f} ms a device"
    shape = f"{case.name}.n{size}"
    median = statistics.median(ratios)
    return Row("fleet", shape, name, "fleet", median, low, high, len(ratios), threads, device, "float32", note)


def growth(case: Case, size: int, device: str, threads: int) -> list[Row]:
    """Milliseconds and MiB a device; memory is the process's peak above what it had before the fleet."""
    before = peak(device)
    run = together(case, device, size)
    run()
    times = sorted(clock(run, device) for _ in range(3))
    shape, rest = f"{case.name}.n{size}", (0.0, 0.0, 3, threads, device, "float32")
    return [
        Row("growth", shape, "ms a device", "", times[1] / size * 1e3, *rest),
        Row("growth", shape, "MiB in all", "", peak(device) - before, *rest),
    ]


def peak(device: str) -> float:
    """MiB."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


@app.default
def main(
    *,
    only: str = "",
    sizes: tuple[int, ...] = SIZES,
    threads: int = 2,
    device: str = "cpu",
    grow: bool = False,
) -> None:
    """Measure, print the table and append it to the CSV.

    Args:
        only: networks whose name contains this.
        sizes: of the fleet.
        threads: of torch.
        device: cpu or cuda.
        grow: time and memory for fleets of 1 to 4,096 instead.
    """
    cases = [case for case in CASES if only in case.name]
    rows: list[Row] = []
    kind = "growth" if grow else "measure"
    jobs = [(case, size) for case in cases for size in (GROWING if grow else sizes)]
    for case, size in track(jobs, console=Console(stderr=True)):
        command = [sys.executable, __file__, "one", kind, case.name, str(size), device, str(threads)]
        found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        rows += [Row(**row) for row in json.loads(found)]
    save(rows, RESULTS)
    show(rows, f"{threads} thread{'s' * (threads > 1)}, {device}")


@app.command(show=False)
def one(kind: str, name: str, size: int, device: str, threads: int) -> None:
    """One network and size, in a process of its own: what an allocator keeps depends on what came before."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    case = next(case for case in CASES if case.name == name)
    measured = {"measure": measure, "growth": growth}[kind](case, size, device, threads)
    json.dump([asdict(row) for row in measured], sys.stdout)


def show(rows: list[Row], title: str) -> None:
    """One row a network and size."""
    columns = [name for name in dict.fromkeys(row.column for row in rows) if name != "fleet"]
    growing = rows[0].measure == "growth"
    table = Table(title=f"{'fleets' if growing else 'one after another / fleet'}: {title}", title_justify="left")
    for heading in ("network", *columns, *(() if growing else ("bound", "fleet"))):
        table.add_column(heading, justify="left" if heading == "network" else "right")
    for shape in dict.fromkeys(row.shape for row in rows):
        cells = {row.column: row for row in rows if row.shape == shape}
        case = next(case for case in CASES if shape.startswith(case.name))
        bound = f"{case.bound} × PEFT" if int(shape.rpartition("n")[2]) >= 64 else "1 ×"
        note = cells["fleet"].note if "fleet" in cells else ""
        table.add_row(shape, *[f"{cells[name].ratio:.2f}" for name in columns], *(() if growing else (bound, note)))
    Console(width=110).print(table)


if __name__ == "__main__":
    app()
