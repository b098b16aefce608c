"""The table of a comparison: what it shows of numbers, and that a terminal of 80 columns cuts none of them."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from audiolora.comparison.ways import WAYS
from audiolora.report.comparison import WayRow, comparison_markdown, comparison_table, shown


def row(way: str, error: float, *, trained: int = 2_044_018) -> WayRow:
    costs = (trained, 8_176_072, 1.3432, 1_279_389_696)
    return WayRow(way, WAYS[way].what, error, 0.9 * error, 1.3 * error, (error,), 0.09, *costs, "", True)


@pytest.mark.parametrize(("unit", "error"), [("WER %", 188.7437), ("MASE", 0.94431)])
def test_every_cell_is_whole_in_80_columns(unit: str, error: float) -> None:
    rows = [row(way, error) for way in WAYS]
    console = Console(file=io.StringIO(), width=80)
    console.print(comparison_table(rows, unit))
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert "…" not in printed
    assert all(way in printed for way in WAYS)
    assert printed.count(shown(error, unit)) >= len(WAYS)
    assert "1,220 MiB" in printed and "2,044,018" in printed


def test_percentages_have_one_decimal_and_others_three() -> None:
    assert [shown(92.0, "WER %"), shown(5.25, "WER %"), shown(1.0, "MASE")] == ["92.0", "5.2", "1.000"]
    assert "| lora | 37.2 | 33.5 – 48.4 | 29,170 |" in comparison_markdown(
        [row("lora", 37.22, trained=29_170)], "WER %"
    )
