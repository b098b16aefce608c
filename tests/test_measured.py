"""Tables in the README and in docs/ say what benchmarks/results/ has."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest

from audiolora.report.comparison import shown
from benchmarks.whisper_context import table as context_table

ROOT = Path(__file__).parents[1]
UNITS = {"sensor": "MASE", "ctc": "WER %"}
NAMES = {
    "frozen": "frozen", "the last layer": "head", "biases": "bias", "LoRA in attention": "lora-attention",
    "LoRA in attention + FFN": "lora-attention-ffn", "LoRA in convolutions": "lora-conv", "LoRA": "lora",
    "DoRA": "dora", "LoHa": "loha", "LoKr": "lokr", "AdaLoRA": "adalora", "LoRA over 8 bits": "lora-int8",
    "LoRA over NF4": "lora-nf4", "GmP's magnitudes": "gmp-r", "full tuning": "full", "full tuning as GmP": "gmp",
}  # fmt: skip


def results(task: str) -> dict[str, dict[str, str]]:
    with (ROOT / "benchmarks" / "results" / f"compare_{task}.csv").open(encoding="utf-8") as file:
        return {row["way"]: row for row in csv.DictReader(file)}


def table(page: str, heading: str) -> list[list[str]]:
    """The cells under a table's headings."""
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith(f"| way | {heading}"))
    end = next(i for i in range(first, len(lines)) if not lines[i].startswith("|"))
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[first + 2 : end]]


def test_the_readme_s_table() -> None:
    rows = table("README.md", "forecaster")
    assert {NAMES[row[0]] for row in rows} == {*results("sensor"), *results("ctc")}
    for row in rows:
        for task, cells in (("sensor", row[1:4]), ("ctc", row[4:7])):
            found = results(task).get(NAMES[row[0]])
            if found is None:
                assert cells == ["–"] * 3
                continue
            error, low, high = (shown(float(found[name]), UNITS[task]) for name in ("error", "low", "high"))
            assert cells[0].strip("*") == f"{error} [{low}, {high}]", row[0]
            assert cells[1] == (f"{int(found['trained']):,}" if found["learning_rate"] else "–"), row[0]
            assert cells[2] == (f"{float(found['step']):.2f}" if found["step"] else "–"), row[0]


@pytest.mark.parametrize("task", ["sensor", "ctc"])
def test_the_tables_of_choosing(task: str) -> None:
    unit, measured = UNITS[task], results(task)
    rows = table("docs/choosing.md", f"{unit} |")
    assert [row[0] for row in rows] == list(measured)
    for row in rows:
        found = measured[row[0]]
        low, high = (float(x) for x in re.split(r" – ", row[2]))
        assert [row[1], low, high] == [
            shown(float(found["error"]), unit),
            *(float(shown(float(found[name]), unit)) for name in ("low", "high")),
        ]
        if found["learning_rate"]:
            assert row[-1] == f"{float(found['learning_rate']):.2g}" + ("*" if found["at_edge"] == "True" else "")
            assert row[3] == f"{int(found['trained']):,}"


def test_the_table_of_contexts() -> None:
    assert context_table() in (ROOT / "docs" / "speech.md").read_text(encoding="utf-8")
