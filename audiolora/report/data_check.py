"""What `audiolora data check` shows: a table in the terminal, and one HTML page."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from audiolora.files import write_text
from audiolora.report.drawing import BEFORE, RULE, inline_svg, styled_figure
from audiolora.report.page import Snippet, count, render_page
from audiolora.speech.checks.data_check import DataCheck
from audiolora.speech.data.findings import KINDS, Finding, by_kind

if TYPE_CHECKING:
    from markupsafe import Markup
    from rich.console import Console
    from rich.table import Column

_FIRST = 3  # rows that the terminal shows of each kind
_DOUBTFUL_LISTED = 1000  # rows of a kind on the page; bad ones are all there
_COUNTED = 12  # speakers, languages, … that are named before the rest is counted


@dataclass(frozen=True)
class DataReport:
    """The page.

    Attributes:
        title, subtitle: its head.
        check: what was found.
        facts: (name, value) rows of the settings table.
    """

    title: str
    subtitle: str
    check: DataCheck
    facts: Sequence[tuple[str, str]] = ()
    usage: Sequence[Snippet] = ()
    attribution: Sequence[str] = ()


@dataclass(frozen=True)
class _Group:
    """The findings of one kind, as the page shows them."""

    kind: str
    title: str
    remedy: str
    severity: str
    total: int
    shown: Sequence[Finding]


def write_data_report(path: str | os.PathLike[str], check: DataCheck, *, facts: Sequence[tuple[str, str]] = ()) -> None:
    """Write a self-contained HTML page, atomically: every bad row, and the first doubtful ones of each kind.

    Args:
        path: where to write.
        check: what was found.
        facts: (name, value) rows for the settings table.

    Raises:
        OSError: the file could not be written.

    >>> write_data_report("check.html", check_data(read_parts(["train.jsonl"])))  # doctest: +SKIP
    """
    report = DataReport(", ".join(check.parts) or "no clips", f"checked against {check.limits.called}", check, facts)
    groups = [
        _Group(kind, KINDS[kind].title, KINDS[kind].remedy, KINDS[kind].severity, total, _shown(check, kind))
        for kind, total in by_kind(check.findings)
    ]
    page = render_page(
        "data_check.html.j2",
        report=report,
        check=check,
        groups=groups,
        parts=check.part_table(),
        counts=[(name, _shortened(several)) for name, several in check.counts().items()],
        durations_svg=_histogram(
            [row.facts.duration_s for row in check.rows], "durations", "seconds", check.limits.max_duration_s
        ),
        levels_svg=_histogram([row.facts.level_dbfs for row in check.rows], "levels", "mean level, dBFS", None),
    )
    write_text(path, page)


def print_data_check(check: DataCheck, console: Console) -> None:
    """Print what was found: the parts, each kind with its count and remedy, and the first rows of each bad kind."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    plain: dict[str, Any] = {"box": box.SIMPLE_HEAD, "header_style": "bold", "pad_edge": False}
    parts = Table("part", *(_right(name) for name in ("clips", "hours", "speakers")), **plain)
    for part, clips, hours, speakers in check.part_table():
        parts.add_row(Text(part), count(clips), f"{hours:.2f}", count(speakers) if speakers else "–")
    console.print(parts)
    for name, several in check.counts().items():
        console.print(Text(f"{name}: " + ", ".join(f"{value} ({count(n)})" for value, n in _shortened(several, 5))))
    if check.letters_outside:
        letters = ", ".join(f"{letter!r} ({count(n)})" for letter, n in check.letters_outside[:20])
        console.print(Text(f"letters outside the vocabulary: {letters}"))
    if not check.findings:
        console.print(Text(f"nothing found wrong with {count(check.n_rows)} rows", style="bold"))
        return
    kinds = Table("", "finding", _right("rows"), "what to do", **plain)
    for kind, total in by_kind(check.findings):
        its = KINDS[kind]
        style = "bold red" if its.severity == "bad" else "yellow"
        kinds.add_row(Text(its.severity, style=style), Text(its.title), count(total), Text(its.remedy))
    console.print(kinds)
    for kind, total in by_kind(check.findings):
        first = [finding for finding in check.findings if finding.kind == kind][:_FIRST]
        more = f" (the first {_FIRST} of {count(total)})" if total > _FIRST else ""
        console.print(Text(f"{KINDS[kind].title}{more}", style="bold"))
        for finding in first:
            console.print(Text(f"  {finding}"), soft_wrap=True)
    bad = f"{count(check.n_bad_rows)} of {count(check.n_rows)} rows are bad"
    console.print(Text(f"{bad}: training refuses them, or leaves them out with --skip-bad", style="bold"))


def _right(name: str) -> Column:
    from rich.table import Column

    return Column(name, justify="right", no_wrap=True)


def _shown(check: DataCheck, kind: str) -> list[Finding]:
    found = [finding for finding in check.findings if finding.kind == kind]
    return found if KINDS[kind].severity == "bad" else found[:_DOUBTFUL_LISTED]


def _shortened(several: Sequence[tuple[str, int]], listed: int = _COUNTED) -> list[tuple[str, int]]:
    rest = several[listed:]
    return [*several[:listed], *([(f"{count(len(rest))} others", sum(n for _, n in rest))] if rest else [])]


def _histogram(values: Sequence[float], name: str, unit: str, limit: float | None) -> Markup | None:
    """How many clips have each value; a line stands at the limit, where some lie near it."""
    if not values:
        return None
    with styled_figure(5.4, 2.6) as (figure, axes):
        axes.hist(values, bins=min(60, max(10, round(len(values) ** 0.5))), color=BEFORE)
        if limit is not None and max(values) > 0.8 * limit:
            axes.axvline(limit, color=RULE, linewidth=1.2, linestyle="--")
        axes.set_xlabel(unit)
        axes.set_ylabel("clips")
        axes.grid(axis="y", color=RULE, linewidth=0.7)
        ordered = sorted(values)
        middle = ordered[len(ordered) // 2]
        text = (
            f"Histogram of {unit} over {len(values)} clips: {ordered[0]:.2f} to {ordered[-1]:.2f}, median {middle:.2f}."
        )
        return inline_svg(figure, name, text)
