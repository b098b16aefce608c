"""The models of a series run as a table in the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from audiolora.report.table import print_next_steps

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from audiolora.report.series import ModelRow

_LABEL_WIDTH = 21  # what an 80-column terminal leaves beside the figures


def models_table(rows: Sequence[ModelRow], devices: int) -> Table:
    """MASE of each model, 80 columns wide at most; the lowest stands in bold.

    Args:
        rows: the base as it is first.
        devices: how many were scored.

    Raises:
        ValueError: no rows.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    if not rows:
        raise ValueError("a table of models needs at least one row, got none")
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False, caption_justify="left", caption_style="dim")
    table.add_column("", no_wrap=True, max_width=_LABEL_WIDTH, overflow="ellipsis")
    for heading in ("trained", "MASE [95 %]", "wins", "fallback", "o/s/b"):
        table.add_column(heading, justify="right", no_wrap=True)
    best = min(row.mase for row in rows)
    for row in rows:
        own = "–" if row.fallback is None else f"{row.uses_own}/{row.uses_shared}/{row.uses_base}"
        table.add_row(
            Text(row.model),
            "–" if row.trained is None else f"{row.trained:,}",
            Text(f"{row.mase:.3f} [{row.low:.2f}, {row.high:.2f}]"),
            "–" if row.wins is None else f"{row.wins}/{devices}",
            "–" if row.fallback is None else f"{row.fallback:.3f}",
            own,
            style="bold" if row.mase == best and len(rows) > 1 else None,
        )
    table.caption = (
        "wins: devices with a smaller error than the frozen base's\n"
        "fallback: with fallback, each device by what was best on its validation days\n"
        "o/s/b: devices that use their own adapter / the one they share / the base"
    )
    return table


def print_models(
    rows: Sequence[ModelRow],
    *,
    devices: int,
    title: str = "",
    next_steps: Sequence[tuple[str, str]] = (),
    console: Console | None = None,
) -> None:
    """Print the table, then where to look next; arguments as in `report.table.print_summary`."""
    from rich.console import Console
    from rich.text import Text

    out = console if console is not None else Console()
    if title:
        out.print(Text(title, style="bold"))
    out.print(models_table(rows, devices))
    print_next_steps(next_steps, out)
