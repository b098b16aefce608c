"""What becomes of an adapter on a 1-D convolution: audiolora beside stock PEFT, and LyCORIS where it is installed.

    python benchmarks/peers.py                 # every table, a minute or two on one thread
    python benchmarks/peers.py --only causal   # rows whose name contains this; nothing is written

Table one is the tests' table of convolutions (`tests/layers/convolutions.py`) × {LoRA, rslora, lora_bias, DoRA}, judged
as `peers_cells` says. Table two is every convolution, one at a time, of the tests' transformers models
(`tests/models/transformers_models.py`), judged as `peers_models` says. Table three is what PEFT does with an adapted
``nn.Conv1d`` besides (`peers_features`). ``--lycoris`` adds LyCORIS' LoCon and LoHa to table one (`peers_lycoris`);
it needs ``pip install --no-deps lycoris-lora==4.1.3 einops toml``.

The tables go to stdout as markdown, and whole runs to benchmarks/results/peers.csv, one line a cell.
"""

import csv
import logging
import os
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported, which reads it once
sys.path.insert(0, str(Path(__file__).parents[1]))  # the tables are the tests': nothing of them is written twice

import torch
from cyclopts import run

from benchmarks.peers_cells import LIBRARIES, METHODS, Verdict, judge
from benchmarks.peers_features import FEATURES
from benchmarks.peers_models import judge_model
from tests.layers.convolutions import CONVOLUTIONS, Convolution
from tests.models.transformers_models import TABLE

RESULTS = Path(__file__).parent / "results" / "peers.csv"
LYCORIS = "LyCORIS"


@dataclass(frozen=True)
class Line:
    """One cell, as it stands in the CSV."""

    table: str
    row: str
    method: str
    library: str
    verdict: Verdict


def main(*, only: str = "", lycoris: bool = False) -> None:
    """Judge every cell, print the tables and write the CSV.

    Args:
        only: rows whose name contains this; nothing is written then.
        lycoris: LyCORIS' LoCon and LoHa too, on the table of convolutions.
    """
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    lines = [*convolution_lines(only), *(lycoris_lines(only) if lycoris else ())]
    show_convolutions(lines, lycoris)
    models = model_lines(only)
    show_models(models)
    features = feature_lines(only)
    show_features(features)
    if not only:
        save([*lines, *models, *features], lycoris)


def convolution_lines(only: str) -> list[Line]:
    return [
        Line("convolution", row.name, method, name, judge(row, method, name))
        for row in rows(only)
        for name in LIBRARIES
        for method in METHODS
    ]


def rows(only: str) -> list[Convolution]:
    return [row for row in CONVOLUTIONS if only in row.name]


def lycoris_lines(only: str) -> list[Line]:
    from benchmarks.peers_lycoris import ALGORITHMS, judge_lycoris

    return [
        Line("convolution", row.name, method, LYCORIS, judge_lycoris(row, method))
        for row in rows(only)
        for method in ALGORITHMS
    ]


def model_lines(only: str) -> list[Line]:
    return [
        Line("model", f"{row.name}: {path}", "lora", name, verdict)
        for row in TABLE
        if only in row.name
        for name in LIBRARIES
        for path, verdict in judge_model(row, name).items()
    ]


def feature_lines(only: str) -> list[Line]:
    return [
        Line("feature", row, "dora" if "DoRA" in row else "lora", name, feature(name))
        for row, feature in FEATURES.items()
        if only in row
        for name in LIBRARIES
    ]


def show_convolutions(lines: list[Line], lycoris: bool) -> None:
    """A line a row; methods that always agree in PEFT share a column, and say so where they do not."""
    cells = {(line.row, line.library, line.method): str(line.verdict) for line in lines}
    columns: dict[str, tuple[str, tuple[str, ...]]] = {
        "PEFT LoRA, rslora, lora_bias": ("PEFT", ("lora", "rslora", "lora_bias")),
        "PEFT DoRA": ("PEFT", ("dora",)),
        **{f"LyCORIS {m}": (LYCORIS, (m,)) for m in dict.fromkeys(li.method for li in lines if li.library == LYCORIS)},
        "PEFT LoHa": ("PEFT", ("loha",)),
        "PEFT LoKr": ("PEFT", ("lokr",)),
        "audiolora, all six": ("audiolora", tuple(METHODS)),
    }
    body = [
        [row, *(shared({m: cells[row, name, m] for m in methods}) for name, methods in columns.values())]
        for row in dict.fromkeys(line.row for line in lines)
    ]
    print_table("One convolution", ["convolution", *columns], body)
    if body:
        for name in (*LIBRARIES, *([LYCORIS] if lycoris else [])):
            found = Counter(line.verdict.word for line in lines if line.library == name)
            print(f"{name}: {counted(found)} of {found.total()} cells")


def shared(verdicts: dict[str, str]) -> str:
    """The verdicts of several methods in one cell: once if they agree, else each verdict with its methods."""
    methods: dict[str, list[str]] = {}
    for method, verdict in verdicts.items():
        methods.setdefault(verdict, []).append(method)
    if len(methods) == 1:
        return next(iter(methods))
    return "; ".join(f"{', '.join(names)}: {verdict}" for verdict, names in methods.items())


def show_models(lines: list[Line]) -> None:
    """A line a model: how many of its convolutions met which end."""
    found: dict[str, dict[str, Counter[str]]] = {}
    for line in lines:
        counters = found.setdefault(line.row.partition(":")[0], {name: Counter() for name in LIBRARIES})
        counters[line.library][str(line.verdict)] += 1
    body = [
        [model, str(each["PEFT"].total()), *(counted(each[name]) for name in LIBRARIES)]
        for model, each in found.items()
    ]
    total = {name: sum((each[name] for each in found.values()), Counter()) for name in LIBRARIES}
    if body:
        body.append(["**all**", str(total["PEFT"].total()), *(counted(words(total[name])) for name in LIBRARIES)])
    print_table("Each convolution of a real model, LoRA", ["model", "convolutions", *LIBRARIES], body)


def words(found: Counter[str]) -> Counter[str]:
    """Without the stages."""
    total: Counter[str] = Counter()
    for verdict, n in found.items():
        total[verdict.partition(" (")[0]] += n
    return total


def counted(found: Counter[str]) -> str:
    return ", ".join(f"{n} {verdict}" for verdict, n in found.most_common())


def show_features(lines: list[Line]) -> None:
    cells = {(line.row, line.library): f"{line.verdict.word}: {line.verdict.detail}" for line in lines}
    body = [[row, *(cells[row, name] for name in LIBRARIES)] for row in dict.fromkeys(line.row for line in lines)]
    print_table("PEFT's features on an nn.Conv1d", ["feature", *LIBRARIES], body)


def print_table(title: str, header: list[str], body: Iterable[list[str]]) -> None:
    print(f"\n**{title}**\n\n| {' | '.join(header)} |\n{'|---' * len(header)}|")
    for line in body:
        print(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |")
    print()


def save(lines: list[Line], lycoris: bool) -> None:
    """The whole table anew: it holds facts about versions, and no timings to gather."""
    packages = ("torch", "peft", "transformers", *(("lycoris-lora",) if lycoris else ()))
    versions = " ".join(f"{name}={version(name)}" for name in packages)
    with RESULTS.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["table", "row", "method", "library", "verdict", "stage", "detail", "versions"])
        for line in lines:
            found = line.verdict
            cell = (line.table, line.row, line.method, line.library, found.word, found.stage, found.detail)
            writer.writerow([*cell, versions])


if __name__ == "__main__":
    run(main)
