"""Systems compared, as a table in the terminal, as JSON and as one HTML page."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from audiolora.files import write_text
from audiolora.report.page import Snippet, render_page
from audiolora.report.speech import joined_edits
from audiolora.speech.texts.compared import Compared
from audiolora.speech.texts.metrics import Edit, word_differences
from audiolora.speech.texts.significance import Difference

if TYPE_CHECKING:
    from rich.table import Table

SHOWN = 20
"""Utterances on the page for each system."""

HEADINGS = ("WER %", "CER %", "change", "relative", "better", "p")
EXPLAINED = (
    "change: percentage points against the first, with its interval from a bootstrap over utterances drawn for both "
    "systems alike (Bisani and Ney 2004). relative: the same over the first's rate. better: share of resamples with "
    "fewer errors. p: matched-pairs test over utterances (Gillick and Cox 1989), for one pair of systems alone."
)


def table(compared: Compared) -> Table:
    """For the terminal."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    found = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False, caption_justify="left", caption_style="dim")
    found.add_column("", overflow="fold")
    for heading in HEADINGS:
        found.add_column(heading, justify="right", no_wrap=True)
    for name, *cells in rows(compared):
        found.add_row(Text(name), *(Text(cell) for cell in cells))  # Text: a name such as "[red]" must be shown
    words = compared.systems[0].rates.reference_words
    found.caption = f"{len(compared.ids)} utterances, {words} words, texts by {_rules(compared)}\n{EXPLAINED}"
    return found


def rows(compared: Compared) -> list[tuple[str, ...]]:
    """A row a system: its name, then a cell for each of `HEADINGS`."""
    found = []
    for system, change in zip(compared.systems, (None, *compared.differences), strict=True):
        rates = (f"{system.rates.wer.value:.2f}", f"{system.rates.cer.value:.2f}")
        found.append((system.name, *rates, *(_cells(change) if change else ("",) * 4)))
    return found


def as_json(compared: Compared) -> dict[str, Any]:
    """Everything but the texts, for programs."""
    return {
        "unit": compared.unit,
        "utterances": len(compared.ids),
        "normalize": compared.rules,
        "systems": [{"name": one.name, **dataclasses.asdict(one.rates)} for one in compared.systems],
        "differences": [
            {"name": one.name, "against": compared.systems[0].name, **dataclasses.asdict(change),
             "told_apart": change.told_apart}
            for one, change in zip(compared.systems[1:], compared.differences, strict=True)
        ],
        "by_speaker": compared.by_speaker,
        "notes": list(compared.notes),
    }  # fmt: skip


@dataclass(frozen=True)
class _Changed:
    """An utterance as the page shows it: (system, errors, differences) for the first system and another."""

    id: str
    reference: str
    texts: tuple[tuple[str, int, list[Edit]], tuple[str, int, list[Edit]]]


@dataclass(frozen=True)
class _Page:
    title: str
    subtitle: str
    notes: Sequence[str]
    usage: Sequence[Snippet] = ()
    facts: Sequence[tuple[str, str]] = ()
    attribution: Sequence[str] = ()


def write_compared(path: Path, compared: Compared) -> None:
    """Write the page, atomically: figures, rates by speaker, and the utterances that changed most.

    Args:
        path: the file.
        compared: what `audiolora.speech.texts.compared.compare` found.

    Example:
        >>> write_compared(Path("compared.html"), compared)  # doctest: +SKIP
    """
    facts = [("texts by", _rules(compared)), ("errors in", f"{compared.unit}s"), ("utterances", str(len(compared.ids)))]
    names = [system.name for system in compared.systems]
    page = render_page(
        "compared.html.j2",
        report=_Page(f"{names[0]} against {', '.join(names[1:])}", "on the same utterances", compared.notes, (), facts),
        headings=HEADINGS,
        rows=rows(compared),
        explained=EXPLAINED,
        names=names,
        by_speaker=compared.by_speaker,
        unit=compared.unit,
        changed=[(names[i], _changed(compared, i)) for i in range(1, len(names))],
    )
    write_text(path, page)


def _changed(compared: Compared, other: int) -> list[_Changed]:
    def text(system: int, i: int) -> tuple[str, int, list[Edit]]:
        one = compared.systems[system]
        return one.name, one.errors[i].errors, joined_edits(word_differences(compared.references[i], one.texts[i]))

    return [
        _Changed(compared.ids[i], compared.references[i], (text(0, i), text(other, i)))
        for i in compared.most_changed(other, SHOWN)
    ]


def _cells(change: Difference) -> tuple[str, ...]:
    return (
        f"{change.points:+.2f} [{change.low:+.2f}, {change.high:+.2f}]",
        "–" if change.relative is None else f"{change.relative:+.1f} %",
        f"{100 * change.better:.1f} %",
        "–" if change.p_value is None else f"{change.p_value:.3f}" if change.p_value >= 0.001 else "< 0.001",
    )


def _rules(compared: Compared) -> str:
    rules = compared.rules
    spellings = f", {rules['spellings']} spellings" if rules.get("spellings") else ""
    return f"rules {rules['rules']}, language {rules['language'] or 'unknown'}{spellings}"
