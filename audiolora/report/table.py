"""The figures of a report as a table in the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from audiolora.speech.texts.metrics import ErrorRates, Interval, relative_reduction

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_LABEL_WIDTH = 17  # what an 80-column terminal leaves beside the figures


def summary_table(rows: Sequence[tuple[str, ErrorRates]]) -> Table:
    """Error rates side by side, 80 columns wide at most; the lowest word error rate stands in bold.

    Args:
        rows: (label, rates) in the order to show, the zero-shot model first.

    Returns:
        A table to print with rich.

    Raises:
        ValueError: no rows.

    Example:
        >>> summary_table([("zero-shot", before), ("adapted", after)])  # doctest: +SKIP
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    if not rows:
        raise ValueError("a summary needs at least one row of (label, ErrorRates), got none")
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False, caption_justify="left", caption_style="dim")
    table.add_column("", no_wrap=True, max_width=_LABEL_WIDTH, overflow="ellipsis")
    table.add_column(f"WER % [{100 * rows[0][1].confidence:g} % interval]", justify="right", no_wrap=True)
    for heading in ("CER %", "sub", "ins", "del"):
        table.add_column(heading, justify="right", no_wrap=True)
    lowest = min(rates.wer.value for _, rates in rows)
    for label, rates in rows:
        counts = (str(rates.substitutions), str(rates.insertions), str(rates.deletions))
        # Text, not str: a label such as "[red]" must be shown, not obeyed.
        table.add_row(
            Text(label),
            Text(_interval(rates.wer)),
            f"{rates.cer.value:.1f}",
            *counts,
            style="bold" if rates.wer.value == lowest and len(rows) > 1 else None,
        )
    table.caption = _caption(rows)
    return table


def print_summary(
    rows: Sequence[tuple[str, ErrorRates]],
    *,
    title: str = "",
    next_steps: Sequence[tuple[str, str]] = (),
    console: Console | None = None,
) -> None:
    """Print the summary table, then where to look next.

    Args:
        rows: as in `summary_table`.
        title: a line above the table.
        next_steps: (what, where) pairs such as ("report", "runs/demo/report.html"); a long path is never broken.
        console: where to print; the terminal if None.

    Example:
        >>> print_summary(rows, next_steps=[("report", "runs/demo/report.html")])  # doctest: +SKIP
    """
    from rich.console import Console
    from rich.text import Text

    out = console if console is not None else Console()
    if title:
        out.print(Text(title, style="bold"))
    out.print(summary_table(rows))
    print_next_steps(next_steps, out)


def print_next_steps(next_steps: Sequence[tuple[str, str]], out: Console) -> None:
    """(what, where) a line; a long path is never broken."""
    from rich.text import Text

    width = max((len(what) for what, _ in next_steps), default=0)
    for what, where in next_steps:
        line = Text.assemble((f"{what:<{width}}  ", "dim"), where)
        out.print(line, no_wrap=True, overflow="ignore", crop=False, soft_wrap=True)


def _interval(rate: Interval) -> str:
    return f"{rate.value:.1f} [{rate.low:5.1f}, {rate.high:5.1f}]"


def _caption(rows: Sequence[tuple[str, ErrorRates]]) -> str:
    """What was scored and, for two rows, how much of the word error rate went away."""
    first, last = rows[0][1], rows[-1][1]
    scored = f"{first.reference_words} words"
    if first.utterances is not None:
        scored += f" in {first.utterances} utterances"
    change = relative_reduction(first.wer.value, last.wer.value) if len(rows) == 2 else None
    return scored if change is None else f"{scored}\nword error rate {0.0 - change:+.1f} % relative"
