"""A fleet's outcome in the terminal: totals, who gained and who lost most, who was left out and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from audiolora.series.checks import Findings

    Row = Mapping[str, Any]

_FINDINGS_SHOWN = 40

SHOWN = 10
"""Devices at each end of the ranking, and of each kind of outcome that has no score."""

MODELS = {
    "zero_shot": "base",
    "adapted": "adapted, or base",
    "seasonal_naive": "seasonal naive",
    "ridge": "ridge a device",
}


def ranked(devices: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """The devices with an adapter that gained most, best first, and those that lost, worst first; ten each at most.

    Example:
        >>> best, worst = ranked([{"outcome": "gained", "change": -0.1}, {"outcome": "lost", "change": 0.2}])
        >>> len(best), worst[0]["change"]
        (1, 0.2)
    """
    gained = sorted((one for one in devices if one["outcome"] == "gained"), key=lambda one: one["change"])
    lost = sorted((one for one in devices if one["outcome"] == "lost"), key=lambda one: -one["change"])
    return gained[:SHOWN], lost[:SHOWN]


def findings_table(findings: Findings) -> Table | str:
    """What was found in the data, bad devices first; of a long list the bad devices alone."""
    if findings.table.empty:
        return str(findings)
    if len(findings.table) <= _FINDINGS_SHOWN:
        return findings.rich_table()
    return replace(findings, table=findings.table[findings.table["bad"]]).rich_table()


def print_fleet(summary: Mapping[str, Any], console: Console) -> None:
    """Everything that a terminal has room for; `summary.json` as `report.fleet_run.leave` writes it."""
    from rich.text import Text

    devices, counts = summary["devices"], summary["counts"]
    total = sum(counts.values())
    console.print(Text(f"{total} devices: " + ", ".join(f"{n} {what}" for what, n in counts.items() if n), "bold"))
    for title, totals in (("all that were scored", summary["totals"]), ("unseen by the base", summary["unseen"]),
                          ("those with an adapter", summary["kept"])):  # fmt: skip
        if totals and not (totals is summary["kept"] and totals == summary["totals"]):
            console.print(_totals_table(f"MASE, {title}", totals))
    best, worst = ranked(devices)
    for title, some in ((f"gained most, of {counts['gained']}", best), (f"lost most, of {counts['lost']}", worst)):
        if some:
            console.print(_devices_table(title, some))
    for outcome in ("fell back", "not scored", "left out"):
        some = [one for one in devices if one["outcome"] == outcome]
        if not some:
            continue
        console.print(Text(f"{outcome} ({len(some)})", "bold"))
        for one in some if outcome == "left out" else some[:SHOWN]:
            console.print(Text(f"  {one['unique_id']}: {one['why']}"), soft_wrap=True)
        if outcome != "left out" and len(some) > SHOWN:
            console.print(Text(f"  and {len(some) - SHOWN} more, in the report", "dim"))


def _totals_table(title: str, totals: Sequence[Row]) -> Table:
    table = _table(title, "", "MASE [95 %]", "against the base", "better", "of")
    for one in totals:
        change = wins = ""
        if one["model"] != "zero_shot":
            change = f"{one['change']:+.3f} {_span(one['change_low'], one['change_high'], '+')}"
            wins = str(one["wins"])
        figures = f"{one['value']:.3f} {_span(one['low'], one['high'])}"
        table.add_row(MODELS.get(one["model"], one["model"]), figures, change, wins, str(one["devices"]))
    return table


def _devices_table(title: str, devices: Sequence[Row]) -> Table:
    from rich.text import Text

    table = _table(title, "device", "base", "adapted", "change", "seasonal naive", "steps")
    for one in devices:
        figures = [f"{one[name]:.3f}" for name in ("zero_shot", "adapted")]
        naive = "–" if one["seasonal_naive"] is None else f"{one['seasonal_naive']:.3f}"
        # Text, not str: a device called "[red]" must be shown, not obeyed.
        table.add_row(Text(one["unique_id"]), *figures, f"{100 * one['change']:+.1f} %", naive, str(one["steps"]))
    return table


def _table(title: str, first: str, *headings: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(
        box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False, title=title, title_style="bold", title_justify="left"
    )
    table.add_column(first, overflow="fold", min_width=16)
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _span(low: float, high: float, sign: str = "") -> str:
    return f"[{low:{sign}.3f}, {high:{sign}.3f}]"
