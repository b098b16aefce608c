"""docs/methods.md: its Python is run, its tables are counted."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from torch import nn

import audiolora
from audiolora.export.slots import copied, fold
from tests.test_readme import blocks_of

PAGE = Path(__file__).parents[1] / "docs" / "methods.md"
TEXT = PAGE.read_text(encoding="utf-8")
KERNELS = {
    "384 → 384, k = 3": lambda: nn.Conv1d(384, 384, 3),
    "768 → 768, k = 128, 16 groups": lambda: nn.Conv1d(768, 768, 128, groups=16),
    "64 channels, k = 51, depthwise": lambda: nn.Conv1d(64, 64, 51, groups=64),
}
METHODS = {"LoRA": ("lora", "shared"), "LoRA, Tucker": ("lora", "tucker"), "LoHa": ("loha", "shared"),
           "LoKr": ("lokr", "shared")}  # fmt: skip


def tables() -> list[tuple[list[str], list[list[str]]]]:
    """Headings and rows of those whose first column is the kernel."""
    found = []
    for table in re.findall(r"(?:^\|.*\|\n)+", TEXT, re.MULTILINE):
        rows = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in table.splitlines()]
        if rows[0][0] == "kernel":
            found.append((rows[0], rows[2:]))
    return found


def kernel_of(cell: str) -> str:
    return next(name for name in KERNELS if cell.replace("ModernTCN's: ", "").endswith(name))


def test_the_python_runs(tmp_path: Path) -> None:
    script = "\n".join(block.code for block in blocks_of(TEXT) if block.language == "python")
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False,
                          env={"PYTHONPATH": str(PAGE.parents[1]), "OMP_NUM_THREADS": "1"})  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("row", tables()[0][1], ids=lambda row: row[0])
def test_the_parameters_are_counted(row: list[str]) -> None:
    headings, build = tables()[0][0], KERNELS[kernel_of(row[0])]
    assert int(row[1].replace(",", "")) == build().weight.numel()
    for heading, cell in zip(headings[2:], row[2:], strict=True):
        method, factors = METHODS[heading]
        model = audiolora.adapt(nn.ModuleDict({"conv": build()}), method, r=8, targets="conv", conv_factors=factors)
        assert f"{audiolora.inspect(model).rows[0].parameters:,}" == cell, heading


@pytest.mark.parametrize("row", tables()[1][1], ids=lambda row: row[0])
def test_the_exported_numbers_are_counted(row: list[str]) -> None:
    headings, build = tables()[1][0], KERNELS[kernel_of(row[0])]
    for heading, cell in zip(headings[1:], row[1:], strict=True):
        model = audiolora.adapt(nn.ModuleDict({"conv": build()}), METHODS[heading][0], r=8, targets="conv")
        (one,) = fold(copied(model), "default").values()
        numbers = sum(part.numel() for part in (one.A, one.B, one.gain, one.delta) if part is not None)
        form = "ΔW" if one.A is None else f"rank {len(one.A)}"
        assert cell in (f"{numbers:,}", f"{numbers:,} ({form})"), heading
