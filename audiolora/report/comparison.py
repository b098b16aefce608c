"""A comparison of methods as a table (terminal, Markdown, CSV) and as one HTML page."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from audiolora.files import write_text
from audiolora.report.drawing import AFTER, BEFORE, INK, RULE, inline_svg, styled_figure
from audiolora.report.page import render_page

if TYPE_CHECKING:
    from markupsafe import Markup
    from rich.table import Table


@dataclass(frozen=True)
class WayRow:
    """One way of a comparison.

    Attributes:
        way, what: its name, and what is trained.
        error, low, high: mean error rate over seeds, and its 95 % interval over the units of the test set.
        seeds: error rate of each seed.
        learning_rate: the one that was chosen; None for the frozen base.
        trained: parameters.
        shipped_bytes: what a deployment adds to the base.
        step: training step over full tuning's; None for the frozen base.
        peak_bytes: memory of the training above the loaded base.
        ranks: ``"conv 34, attention 4"``, or empty.
        at_edge: the chosen learning rate is the smallest or the largest that was tried: others may do better.
        told_apart: from the way with the smallest error, by the paired difference's 95 % interval.
    """

    way: str
    what: str
    error: float
    low: float
    high: float
    seeds: tuple[float, ...]
    learning_rate: float | None
    trained: int
    shipped_bytes: int
    step: float | None
    peak_bytes: int
    ranks: str = ""
    at_edge: bool = False
    told_apart: bool = True


HEADINGS = ("way", "", "95 % interval", "trained", "adapter", "step", "memory", "lr")


@dataclass(frozen=True)
class ComparisonReport:
    """What `write_comparison_report` shows.

    Attributes:
        title, subtitle: the head of the page.
        unit: of the errors.
        rows: the ways; the frozen base is first.
        facts, notes, usage, attribution: as in a `SpeechReport`.
    """

    title: str
    subtitle: str
    unit: str
    rows: Sequence[WayRow]
    facts: Sequence[tuple[str, str]] = ()
    notes: Sequence[str] = ()
    usage: Sequence[object] = ()
    attribution: Sequence[str] = ()

    def __post_init__(self) -> None:
        if not self.rows:
            raise ValueError("a comparison needs at least one way, got none")

    @property
    def best(self) -> WayRow:
        """The way with the smallest error."""
        return min(self.rows, key=lambda row: row.error)


def shown(error: float, unit: str) -> str:
    """An error as text: of percentages one decimal, of others three.

    Example:
        >>> shown(0.94431, "MASE"), shown(92.0, "WER %")
        ('0.944', '92.0')
    """
    return f"{error:.{1 if unit.endswith('%') else 3}f}"


def cells(row: WayRow, unit: str) -> tuple[str, ...]:
    """A row as text, under `HEADINGS` (the second is the unit)."""
    return (
        row.way,
        shown(row.error, unit),
        f"{shown(row.low, unit)} – {shown(row.high, unit)}",
        f"{row.trained:,}" if row.trained else "–",
        f"{row.shipped_bytes / 1e3:,.0f} KB" if row.shipped_bytes else "–",
        "–" if row.step is None else f"{row.step:.2f}",
        f"{row.peak_bytes / 2**20:,.0f} MiB" if row.learning_rate is not None else "–",
        "–" if row.learning_rate is None else f"{row.learning_rate:.2g}{'*' if row.at_edge else ''}",
    )


def comparison_table(rows: Sequence[WayRow], unit: str) -> Table:
    """For the terminal, 80 columns wide; the smallest error in bold. The learning rates are in the other tables."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False, padding=(0, 1, 0, 0))
    for i, heading in enumerate(_headings(unit)[:-1]):
        table.add_column(heading, justify="left" if i == 0 else "right", no_wrap=True)
    best = min(row.error for row in rows)
    for row in rows:
        table.add_row(*map(Text, cells(row, unit)[:-1]), style="bold" if row.error == best else None)
    return table


def comparison_markdown(rows: Sequence[WayRow], unit: str) -> str:
    """As a README quotes it."""
    lines = [" | ".join(_headings(unit)), "|".join(["---"] * len(HEADINGS))]
    return "".join(f"| {line} |\n" if "---" not in line else f"|{line}|\n" for line in lines) + "".join(
        f"| {' | '.join(cells(row, unit))} |\n" for row in rows
    )


def comparison_csv(rows: Sequence[WayRow]) -> str:
    """Every field of every row."""
    names = [field.name for field in fields(WayRow)]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(names)
    for row in rows:
        values = (getattr(row, name) for name in names)
        writer.writerow([" ".join(map(str, value)) if isinstance(value, tuple) else value for value in values])
    return out.getvalue()


def ways_chart(rows: Sequence[WayRow], unit: str) -> Markup:
    """Error of each way with its interval, and a faint mark a seed; the frozen base as a dashed line."""
    best = min(rows, key=lambda row: row.error)
    with styled_figure(10.4, 0.8 + 0.34 * len(rows)) as (figure, axes):
        for y, row in enumerate(rows):
            colour = BEFORE if row.learning_rate is None else AFTER if row is best else INK
            spread = [[max(0.0, row.error - row.low)], [max(0.0, row.high - row.error)]]
            axes.errorbar(row.error, y, xerr=spread, color=colour, fmt="o", markersize=6, capsize=2.5, elinewidth=1.2)
            axes.plot(row.seeds, [y] * len(row.seeds), "|", color=colour, markersize=9, alpha=0.6)
            if row.learning_rate is None:
                axes.axvline(row.error, color=BEFORE, linewidth=0.9, linestyle=(0, (3, 3)), zorder=0)
        axes.set_yticks(range(len(rows)), [row.way for row in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.grid(axis="x", color=RULE, linewidth=0.7)
        axes.set_xlabel(f"{unit}, lower is better")
        described = "; ".join(f"{row.way} {row.error:.3g}" for row in rows)
        return inline_svg(figure, "ways", f"{unit} of each way. {described}.")


def size_chart(rows: Sequence[WayRow], unit: str) -> Markup:
    """Error over trained parameters, each way a labelled point."""
    trained = [row for row in rows if row.trained]
    best = min(trained, key=lambda row: row.error)
    with styled_figure(10.4, 4.2) as (figure, axes):
        for row in trained:
            axes.plot(row.trained, row.error, "o", color=AFTER if row is best else INK, markersize=6)
            axes.annotate(row.way, (row.trained, row.error), (6, 4), textcoords="offset points", fontsize=8)
        axes.set_xscale("log")
        axes.grid(color=RULE, linewidth=0.7)
        axes.set_xlabel("trained parameters")
        axes.set_ylabel(unit)
        return inline_svg(figure, "sizes", f"{unit} over trained parameters.")


def write_comparison_report(path: str | os.PathLike[str], report: ComparisonReport) -> None:
    """Write a self-contained HTML page, atomically.

    Raises:
        OSError: the file could not be written; what stood there before is whole.
    """
    page = render_page(
        "comparison.html.j2",
        report=report,
        headings=[*_headings(report.unit)],
        cells=cells,
        ways_svg=ways_chart(report.rows, report.unit),
        sizes_svg=size_chart(report.rows, report.unit) if _sizes_differ(report.rows) else None,
    )
    write_text(path, page)


def _sizes_differ(rows: Sequence[WayRow]) -> bool:
    """At equal parameters, error over parameters shows nothing."""
    sizes = [row.trained for row in rows if row.trained]
    return bool(sizes) and max(sizes) >= 2 * min(sizes)


def _headings(unit: str) -> tuple[str, ...]:
    return (HEADINGS[0], unit, *HEADINGS[2:])
