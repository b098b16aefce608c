"""Geometric parametrisation against the plain one and weight norm: a small speech network trained from scratch.

    AUDIOLORA_DATA=… python benchmarks/geometric.py             # fifteen minutes on one thread
    AUDIOLORA_DATA=… python benchmarks/geometric.py --seeds 2 --steps 20

Spoken digits (FSDD), told apart by five convolutions over log-mel frames. Speakers are not shared: three train, one is
the development part, two are the test. All columns start from the same weights, see the same batches and take the same
steps (AdamW, warm-up, cosine, no weight decay) at each learning rate of one grid. The two rates of a column with the
least development error over `GRID_SEEDS` seeds are trained with all seeds, and of these the better one on the
development part is the column's. Every run is a row of benchmarks/results/geometric.csv; the table gives the test error
with its standard deviation over seeds, and the difference to plain, seed by seed, with a 95 % interval of t.
"""

import csv
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import librosa
import soundfile
import torch
import torch.nn.functional as F
from conv_step import cpu_name
from cyclopts import App
from rich.console import Console
from rich.table import Table
from scipy.stats import t as student
from torch import nn
from torch.nn.utils import parametrizations

import audiolora
from audiolora.speech.data.prompts import load_spoken_digits

RESULTS = Path(__file__).parent / "results" / "geometric.csv"
SPEAKERS = {"train": ("george", "jackson", "lucas"), "dev": ("theo",), "test": ("nicolas", "yweweler")}
CLIPS = {"train": 30, "dev": 20, "test": 25}
"""Of each digit and speaker."""
RATES = (1e-3, 3e-3, 1e-2, 3e-2)
GRID_SEEDS = 3
SAMPLES, SAMPLE_RATE_HZ, HOP, MELS = 4800, 8000, 80, 40
"""0.6 s; longer clips are cut. A frame each 10 ms."""

app = App()


class Classifier(nn.Sequential):
    """Log-mel frames (N, 40, 60) → digits (N, 10); Whisper's way down, a grouped and a pointwise convolution."""

    def __init__(self, channels: int = 64) -> None:
        super().__init__(
            nn.Conv1d(MELS, channels, 3, padding=1),
            nn.GELU(),
            nn.Conv1d(channels, channels, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Conv1d(channels, channels, 9, padding=4, groups=16),
            nn.GELU(),
            nn.Conv1d(channels, 2 * channels, 1),
            nn.GELU(),
            nn.Conv1d(2 * channels, 2 * channels, 3, stride=2, padding=1),
            nn.GELU(),
            nn.AdaptiveAvgPool1d(1),
            nn.Flatten(),
            nn.Linear(2 * channels, 10),
        )


def weight_normed(net: nn.Module) -> None:
    for module in list(net.modules()):
        if isinstance(module, (nn.Linear, nn.Conv1d)):
            parametrizations.weight_norm(module)


COLUMNS: dict[str, Callable[[nn.Module], object]] = {
    "plain": lambda net: None,
    "geometric": audiolora.geometric.convert,
    "weight norm": weight_normed,
}


@dataclass(frozen=True)
class Run:
    column: str
    rate: float
    seed: int
    dev_error: float
    test_error: float
    steps: int
    seconds: float


def load() -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Log-mel frames (N, 40, 60), their mean taken off, and digits (N,), by part."""
    parts: dict[str, tuple[list[torch.Tensor], list[int]]] = {part: ([], []) for part in SPEAKERS}
    for utterance in load_spoken_digits():
        digit, speaker, index = utterance.id.split("_")
        part = next((part for part, names in SPEAKERS.items() if speaker in names), None)
        if part is None or int(index) >= CLIPS[part]:
            continue
        wave = librosa.util.fix_length(soundfile.read(utterance.audio, dtype="float32")[0], size=SAMPLES)
        settings = {"sr": SAMPLE_RATE_HZ, "n_fft": 256, "hop_length": HOP, "n_mels": MELS}
        frames = torch.from_numpy(librosa.feature.melspectrogram(y=wave, **settings)[:, :60]).clamp_min(1e-8).log()
        parts[part][0].append((frames - frames.mean()) / frames.std())
        parts[part][1].append(int(digit))
    return {part: (torch.stack(x), torch.tensor(y)) for part, (x, y) in parts.items()}


def train(data: dict[str, tuple[torch.Tensor, torch.Tensor]], column: str, rate: float, seed: int, steps: int) -> Run:
    torch.manual_seed(seed)
    net, began = Classifier(), time.perf_counter()
    COLUMNS[column](net)
    order = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(net.parameters(), rate, weight_decay=0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min(1, (step + 1) / (steps / 10)) * (1 + math.cos(math.pi * step / steps)) / 2
    )
    x, y = data["train"]
    for _ in range(steps):
        rows = torch.randint(len(y), (32,), generator=order)
        F.cross_entropy(net(x[rows]), y[rows]).backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        schedule.step()
    dev, test = _error(net, *data["dev"]), _error(net, *data["test"])
    return Run(column, rate, seed, dev, test, steps, time.perf_counter() - began)


@torch.no_grad()
def _error(net: nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    return 1 - (net(x).argmax(1) == y).float().mean().item()


def by_development_error(runs: list[Run], column: str) -> list[float]:
    """The rates, the best first, each by the mean over the seeds that it was trained with."""

    def dev(rate: float) -> float:
        return statistics.mean(run.dev_error for run in runs if (run.column, run.rate) == (column, rate))

    return sorted(RATES, key=dev)


def save(runs: list[Run]) -> None:
    fixed = {"date": time.strftime("%Y-%m-%d %H:%M", time.gmtime()), "machine": cpu_name()}
    fixed |= {name: version(name) for name in ("audiolora", "torch")}
    new = not RESULTS.exists()
    with RESULTS.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*fixed, *Run.__dataclass_fields__])
        if new:
            writer.writeheader()
        for run in runs:
            values = {k: round(v, 4) if isinstance(v, float) else v for k, v in asdict(run).items()}
            writer.writerow({**fixed, **values})


def show(runs: list[Run]) -> None:
    table = Table(title="test error, two speakers that were not trained on", title_justify="left")
    for heading in ("column", "learning rate", "dev", "test", "minus plain", "95 %"):
        table.add_column(heading, justify="left" if heading == "column" else "right")
    chosen = {column: by_development_error(runs, column)[0] for column in COLUMNS}
    errors = {c: {run.seed: run for run in runs if (run.column, run.rate) == (c, chosen[c])} for c in COLUMNS}
    for column, by_seed in errors.items():
        tests, devs = [[getattr(r, name) for r in by_seed.values()] for name in ("test_error", "dev_error")]
        differences = [run.test_error - errors["plain"][seed].test_error for seed, run in by_seed.items()]
        n = len(differences)
        half = student.ppf(0.975, n - 1) * statistics.stdev(differences) / n**0.5
        mean = statistics.mean(differences)
        table.add_row(
            column,
            f"{chosen[column]:g}",
            f"{statistics.mean(devs):.1%}",
            f"{statistics.mean(tests):.1%} ± {statistics.stdev(tests):.1%}",
            "" if column == "plain" else f"{mean:+.1%}",
            "" if column == "plain" else f"{mean - half:+.1%} … {mean + half:+.1%}",
        )
    Console(width=110).print(table)


@app.default
def main(seeds: int = 16, steps: int = 300, threads: int = 1) -> None:
    """Train all columns, append the runs to the CSV, print the table."""
    torch.set_num_threads(threads)
    data = load()
    grid = range(min(GRID_SEEDS, seeds))
    runs = [train(data, c, rate, seed, steps) for seed in grid for rate in RATES for c in COLUMNS]
    for column in COLUMNS:
        for rate in by_development_error(runs, column)[:2]:  # three seeds do not tell the best from the second
            runs += [train(data, column, rate, seed, steps) for seed in range(len(grid), seeds)]
    save(runs)
    for column in COLUMNS:
        for rate in RATES:
            mine = [run for run in runs if (run.column, run.rate) == (column, rate) and run.seed in grid]
            devs, tests = ([getattr(run, name) for run in mine] for name in ("dev_error", "test_error"))
            print(f"{column} {rate:g}: dev {statistics.mean(devs):.3f} test {statistics.mean(tests):.3f}")
    show(runs)


if __name__ == "__main__":
    app()
