"""The terminal table shows the figures, fits 80 columns, and reads labels as text."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from audiolora.report import print_summary, summary_table
from audiolora.speech.texts.metrics import ErrorRates, Interval

BEFORE = ErrorRates(Interval(1148.3, 1120.0, 1177.5), Interval(2110, 90, 3130), 10123, 24567, 10240, 30001, 50364, 4100)
AFTER = ErrorRates(Interval(7.94, 5.2, 11.0), Interval(3.4, 2.0, 5.0), 20, 5, 6, 50338, 50364, 4100)


def printed(rows: list[tuple[str, ErrorRates]], **options: object) -> str:
    console = Console(file=io.StringIO(), width=80)
    print_summary(rows, console=console, **options)  # type: ignore[arg-type]
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_figures_fit_eighty_columns_one_line_a_model() -> None:
    text = printed([("zero-shot", BEFORE), ("attention + FFN, r 8", AFTER)], title="A title")
    assert max(map(len, text.splitlines())) <= 80
    [before] = [line for line in text.splitlines() if "zero-shot" in line]
    assert before.split() == ["zero-shot", "1148.3", "[1120.0,", "1177.5]", "2110.0", "10123", "24567", "10240"]
    [after] = [line for line in text.splitlines() if "attention" in line]
    assert after.split()[-8:] == ["7.9", "[", "5.2,", "11.0]", "3.4", "20", "5", "6"]
    assert "50364 words in 4100 utterances" in text
    assert "-99.3 % relative" in text


def test_labels_are_text_and_long_paths_are_not_broken() -> None:
    path = "runs/" + "very-long-name/" * 10 + "report.html"
    text = printed([("[red]x[/red]", AFTER)], next_steps=[("report", path), ("adapter", "[b]a")])
    assert "[red]x[/red]" in text
    assert f"report   {path}" in text
    assert "adapter  [b]a" in text


def test_no_rows_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="at least one row"):
        summary_table([])
