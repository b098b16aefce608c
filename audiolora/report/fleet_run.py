"""What a run over a fleet leaves: devices.csv, metrics.jsonl, report.html and, last, summary.json."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np
import pandas as pd

from audiolora.files import write_text
from audiolora.report.fleet_plots import change_chart, scatter_chart, validation_chart
from audiolora.report.fleet_tables import MODELS, print_fleet, ranked
from audiolora.report.page import Snippet, render_page
from audiolora.run import Run

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from audiolora.fleet import DeviceHistory
    from audiolora.series.fleet_preparation import Prepared
    from audiolora.series.fleet_results import FleetScores

_FINDINGS_SHOWN = 200


@dataclass(frozen=True)
class FleetOutcome:
    """What a run came to; `seconds` by part of it."""

    run: Run
    prepared: Prepared
    scores: FleetScores
    histories: Mapping[str, DeviceHistory]
    parameters: int
    seconds: Mapping[str, float]


@dataclass(frozen=True)
class _Page:
    title: str
    subtitle: str
    notes: Sequence[str]
    facts: Sequence[tuple[str, str]]
    usage: Sequence[Snippet]
    attribution: Sequence[str]


def leave(outcome: FleetOutcome) -> None:
    """Write all files; ``summary.json`` last, since a run that has it is finished."""
    run, scores = outcome.run, outcome.scores
    write_text(run.folder / "devices.csv", scores.devices.to_csv(index=False))
    lines = (json.dumps(_plain_history(name, one), allow_nan=False) for name, one in outcome.histories.items())
    write_text(run.folder / "metrics.jsonl", "".join(f"{line}\n" for line in lines))
    summary = _summary(outcome)
    write_text(run.folder / "report.html", _render(outcome, summary))
    run.write("summary.json", summary)


def show(run: Run) -> None:
    """Print a finished run: its table, and where to look next."""
    from rich.console import Console
    from rich.text import Text

    console = Console()
    print_fleet(run.read("summary.json"), console)
    steps = {"report": "report.html", "devices": "devices.csv", "adapters": "adapters", "base": "base"}
    for name, file in steps.items():
        console.print(Text(f"{name:<10}{run.folder / file}"), soft_wrap=True)


def print_exported(run: Run, ids: Sequence[str], console: Console) -> None:
    """`export`, and say where."""
    if ids:
        for folder in export(run, ids):
            console.print(f"adapter   {folder}", soft_wrap=True, markup=False)


def export(run: Run, ids: Sequence[str]) -> list[Path]:
    """Write the adapters of some devices of a finished run as ordinary ones of PEFT, into ``devices/ID``.

    Raises:
        ValueError: a device that has no adapter; then nothing is written.
    """
    from audiolora.series.bases import load_base
    from audiolora.series.fleet_forecaster import FleetForecaster

    why = {one["unique_id"]: (one["outcome"], one["why"]) for one in run.read("summary.json")["devices"]}
    wrong = [f"{name}: {': '.join(why.get(name, ('no such device', 'not in the file')))}" for name in ids
             if why.get(name, ("", ""))[0] in ("", "fell back", "left out")]  # fmt: skip
    if wrong:
        raise ValueError(f"no adapter to export: {'; '.join(wrong)}")
    fleet = FleetForecaster.load(load_base(run.folder), run.folder / "adapters", list(ids))
    folders = [run.folder / "devices" / quote(name, safe="") for name in ids]
    for name, folder in zip(ids, folders, strict=True):
        fleet.export(name, folder)
    return folders


def _summary(outcome: FleetOutcome) -> dict[str, Any]:
    from audiolora.series.fleet_results import OUTCOMES

    scores, prepared = outcome.scores, outcome.prepared
    packages = ("audiolora", "torch", "peft", "pandas", "utilsforecast")
    return {
        "counts": {name: scores.count(name) for name in OUTCOMES},
        "totals": _records(scores.totals),
        "unseen": _records(scores.unseen),
        "kept": _records(scores.kept),
        "devices": _records(scores.devices),
        "parameters": outcome.parameters,
        "seconds": dict(outcome.seconds),
        "times": prepared.times.to_dict(),
        "freq": prepared.base.freq,
        "settings": dict(outcome.run.settings),
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as JSON holds them: None for what is missing."""
    return [
        {k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in row.items()}
        for row in frame.astype(object).where(frame.notna(), None).to_dict("records")
    ]


def _plain_history(name: str, one: DeviceHistory) -> dict[str, Any]:
    losses = [loss if np.isfinite(loss) else None for loss in one.losses]
    checks = [[step, loss if np.isfinite(loss) else None] for step, loss in one.validation]
    return {"unique_id": name, "status": one.status, "steps": one.steps, "best_step": one.best_step, "val": checks,
            "loss": losses}  # fmt: skip


def _render(outcome: FleetOutcome, summary: Mapping[str, Any]) -> str:
    devices, counts = summary["devices"], summary["counts"]
    best, worst = ranked(devices)
    by_outcome = {name: [one for one in devices if one["outcome"] == name] for name in counts}
    titles = {"fell back": "Fell back to the base", "not scored": "Not scored", "left out": "Left out"}
    tables = (("Devices that the base never saw", "unseen"), ("All scored devices", "totals"),
              ("Devices with an adapter", "kept"))  # fmt: skip
    curves = [losses for one in outcome.histories.values() if (losses := [loss for _, loss in one.validation])]
    return render_page(
        "fleet.html.j2",
        report=_page(outcome, summary),
        headline=_headline(summary),
        counts=counts,
        models=MODELS,
        change_svg=change_chart(devices) if counts["gained"] + counts["lost"] else None,
        scatter_svg=scatter_chart(devices),
        validation_svg=validation_chart(curves),
        tables=[(title, summary[key]) for title, key in tables if summary[key]],
        best=best,
        worst=worst,
        others=[(f"{title} ({len(some)})", some) for name, title in titles.items() if (some := by_outcome[name])],
        devices=devices,
        findings=_findings(outcome.prepared.findings.table),
    )


def _headline(summary: Mapping[str, Any]) -> dict[str, Any]:
    totals = summary["unseen"] or summary["totals"]
    by_model = {one["model"]: one for one in totals}
    which = " that the base never saw" if summary["unseen"] else ""
    return {"base": by_model["zero_shot"], "adapted": by_model["adapted"], "which": which,
            "devices": by_model["adapted"]["devices"]}  # fmt: skip


def _findings(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The bad devices' first; of the rest as many as a page has room for."""
    ordered = table.sort_values("bad", ascending=False, kind="stable")
    return ordered.head(max(_FINDINGS_SHOWN, int(table["bad"].sum()))).to_dict("records")


def _page(outcome: FleetOutcome, summary: Mapping[str, Any]) -> _Page:
    run, prepared = outcome.run, outcome.prepared
    base, times = prepared.base, prepared.times
    span = f"{base.lookback} steps of {base.freq} → {base.horizon}"
    facts = [
        ("network", f"{type(base.net).__name__}, {sum(p.numel() for p in base.net.parameters()):,} parameters"),
        ("an adapter", f"{outcome.parameters:,} parameters"),
        ("forecast", span),
        ("adapters learn from", f"({times.history_after}, {times.train_until}]"),
        ("validated on", f"({times.train_until}, {times.val_until}]"),
        ("scored on", f"({times.val_until}, {times.test_until}]"),
        *((name.replace("_", " "), f"{seconds:.1f} s") for name, seconds in outcome.seconds.items()),
        *((name.replace("_", " "), str(value)) for name, value in run.settings.items()),
        *((f"version of {name}", version) for name, version in summary["versions"].items()),
    ]
    notes = ["A device whose adapter does not beat the base on its own validation windows keeps the base."]
    if prepared.learned:
        notes.append(f"The base was trained on {len(prepared.learned)} of the devices, up to {times.train_until}.")
    count = sum(summary["counts"].values())
    title = f"{run.folder.name}: an adapter for each of {count} devices"
    return _Page(title, f"{span}; {count} devices of {run.settings['data']}", notes, facts, _usage(run, summary),
                 prepared.source)  # fmt: skip


def _usage(run: Run, summary: Mapping[str, Any]) -> list[Snippet]:
    device = next((one["unique_id"] for one in summary["devices"] if one["outcome"] in ("gained", "lost")), None)
    code = (
        "from audiolora.series.bases import load_base\n"
        "from audiolora.series.fleet_forecaster import FleetForecaster\n"
        f"base = load_base({str(run.folder)!r})\n"
        f"fleet = FleetForecaster.load(base, {str(run.folder / 'adapters')!r})\n"
        "fleet.predict(frame)   # each device by its own adapter, the others by the base"
    )
    found = [Snippet("Forecast all devices", code)]
    if device is not None:
        again = f"python recipes/sensor_fleet.py --name {run.folder.name} … --export {device!r}"
        found.append(Snippet("One adapter as an ordinary one of PEFT", again))
    return found
