"""What a comparison leaves: table.md, table.csv, summary.json, report.html, and the table in the terminal."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from audiolora.comparison.running import Grid, trials_of
from audiolora.comparison.trials import Trial, chosen_rate, difference, interval, read_costs, read_trials
from audiolora.comparison.ways import WAYS
from audiolora.files import write_text
from audiolora.report.comparison import (
    ComparisonReport,
    WayRow,
    comparison_csv,
    comparison_markdown,
    comparison_table,
    shown,
    write_comparison_report,
)
from audiolora.report.table import print_next_steps

if TYPE_CHECKING:
    from rich.console import Console

    from audiolora.run import Run


def watch(done: Iterator[str], run: Run, grid: Grid, console: Console) -> None:
    """Follow `comparison.running.run_ways` with a progress bar over trainings, and a line a way."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    ways, unit = (run.read("ways.json")[key] for key in ("ways", "unit"))
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("trainings", total=sum(trials_of(grid, way) for way in ways))
        for way in done:
            row = way_row(run, way)
            error, low, high = (shown(value, unit) for value in (row.error, row.low, row.high))
            console.print(f"{way:<20}{error:>8} [{low}, {high}]", highlight=False)
            progress.update(bar, completed=sum(len(read_trials(run.folder, each)) for each in ways))


def way_row(run: Run, way: str) -> WayRow:
    """A way's row from its trials.

    Raises:
        ValueError: a way whose trials are not there.
    """
    trials, costs = read_trials(run.folder, way), read_costs(run.folder, way)
    if not trials or costs is None:
        raise ValueError(f"{run.folder}: {way} is not done; run the same command again, it continues")
    rate = chosen_rate(trials)
    kept = [trial for trial in trials if trial.learning_rate == rate]
    found, first = interval(kept), kept[0]
    return WayRow(
        way,
        WAYS[way].what,
        found.value,
        found.low,
        found.high,
        tuple(trial.test.rate for trial in sorted(kept, key=lambda trial: trial.seed)),
        rate,
        first.trained,
        first.shipped_bytes,
        costs.step_over_full or None,
        min(trial.peak_bytes for trial in trials),  # later ones have seen the scoring, too
        ", ".join(f"{group} {r}" for group, r in (first.ranks or {}).items()),
        _at_edge(trials, rate),
    )


def _compared(run: Run, rows: Sequence[WayRow]) -> list[WayRow]:
    """Each row beside the one with the smallest error."""
    kept = {
        row.way: [t for t in read_trials(run.folder, row.way) if t.learning_rate == row.learning_rate] for row in rows
    }
    best = min(rows, key=lambda row: row.error).way
    return [replace(row, told_apart=row.way != best and difference(kept[row.way], kept[best]).low > 0) for row in rows]


def _at_edge(trials: Sequence[Trial], chosen: float | None) -> bool:
    tried = sorted({trial.learning_rate for trial in trials if trial.learning_rate is not None})
    return len(tried) > 1 and chosen in (tried[0], tried[-1])


def leave(run: Run) -> None:
    """Write the tables, the report and, last of all, summary.json."""
    says = run.read("ways.json")
    rows = _compared(run, [way_row(run, way) for way in says["ways"]])
    settings: dict[str, Any] = dict(run.settings)
    write_text(run.folder / "table.md", comparison_markdown(rows, says["unit"]))
    write_text(run.folder / "table.csv", comparison_csv(rows))
    facts = [(name.replace("_", " "), str(value)) for name, value in settings.pop("settings").items()]
    facts += [(name.replace("_", " "), str(value)) for name, value in settings.items()]
    versions = {name: importlib.metadata.version(name) for name in ("audiolora", "torch", "peft")}
    report = ComparisonReport(
        title=f"{run.settings['task']}, {run.folder.name}",
        subtitle="Every way of adapting beside the others, at the same steps",
        unit=says["unit"],
        rows=rows,
        facts=[*facts, *versions.items()],
        notes=[_told_apart(rows), *_diverged(run, rows)],
    )
    write_comparison_report(run.folder / "report.html", report)
    run.write("summary.json", {"unit": says["unit"], "rows": [asdict(row) for row in rows], "versions": versions})


def show(run: Run) -> None:
    """Print a finished comparison's table, and where to look next."""
    from rich.console import Console

    summary = run.read("summary.json")
    rows = [WayRow(**{**row, "seeds": tuple(row["seeds"])}) for row in summary["rows"]]
    console = Console()
    console.print(comparison_table(rows, summary["unit"]))
    console.print(_told_apart(rows), style="dim")
    steps = [("report", str(run.folder / "report.html")), ("table", str(run.folder / "table.md"))]
    print_next_steps(steps, console)


def _diverged(run: Run, rows: Sequence[WayRow]) -> list[str]:
    """Which rates led to no finite loss, by way."""
    rates = {row.way: [t.learning_rate for t in read_trials(run.folder, row.way) if t.diverged] for row in rows}
    found = [f"{way} at {', '.join(f'{rate:g}' for rate in lost)}" for way, lost in rates.items() if lost]
    return [f"no finite loss, and so not chosen: {'; '.join(found)}"] if found else []


def _told_apart(rows: list[WayRow]) -> str:
    """Which ways the test set cannot tell from the best."""
    best = min(rows, key=lambda row: row.error)
    ties = [row.way for row in rows if row is not best and not row.told_apart]
    edge = [row.way for row in rows if row.at_edge]
    return "; ".join(
        [
            f"{best.way} errs least",
            *([f"not told apart from it (paired bootstrap, 95 %): {', '.join(ties)}"] if ties else []),
            *([f"* at the edge of the learning rates that were tried: {', '.join(edge)}"] if edge else []),
        ]
    )
