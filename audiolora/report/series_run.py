"""What a run of forecasters leaves: metrics.jsonl, summary.json, report.html, and the table in the terminal."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from audiolora.files import write_text
from audiolora.report.series import DeviceForecast, ModelRow, SeriesReport, series_usage, write_series_report
from audiolora.report.series_table import print_models
from audiolora.series.calendar import with_calendar
from audiolora.series.device_results import FROZEN, SHARED
from audiolora.series.metrics import score, summarise

if TYPE_CHECKING:
    from audiolora.run import Run
    from audiolora.series.deployment import Deployment
    from audiolora.series.device_results import DeviceResult
    from audiolora.series.fleets import SensorFleet
    from audiolora.series.forecaster import Forecaster
    from audiolora.series.shifts import Shift

BASELINES = ("seasonal_naive", "ridge")
_PAST_DAYS = 3


@dataclass(frozen=True)
class Outcome:
    """A run at its end, before it is written down.

    Args:
        run: its folder and settings.
        fleet: where the data is from.
        world: the shift.
        plan: devices and times.
        base: the pretrained forecaster.
        epochs: its training, as `Forecaster.fit` returns it.
        results: every unseen device.
    """

    run: Run
    fleet: SensorFleet
    world: Shift
    plan: Deployment
    base: Forecaster
    epochs: pd.DataFrame
    results: Sequence[DeviceResult]

    @property
    def method(self) -> str:
        """The one whose adapters are kept."""
        return str(self.run.settings["method"])


def model_rows(outcome: Outcome) -> tuple[list[ModelRow], pd.DataFrame]:
    """The table of models, the base first, and MASE by device: a column a model, and `… with fallback`."""
    forecasts = pd.concat([result.forecasts for result in outcome.results], ignore_index=True)
    fallback = pd.concat([result.with_fallback() for result in outcome.results], ignore_index=True)
    methods = [*outcome.results[0].methods]
    known = outcome.world.deployed
    history = known[known["ds"] > outcome.plan.history_after]
    plain = score(forecasts, history, seasonality=outcome.world.seasonality)
    kept = score(fallback, history, seasonality=outcome.world.seasonality)
    table = summarise(plain, reference=FROZEN).query("metric == 'mase'").set_index("model")
    used = summarise(kept, reference=FROZEN).query("metric == 'mase'").set_index("model")
    shared = [SHARED + outcome.method] if SHARED + outcome.method in table.index else []
    rows = []
    for name in [FROZEN, *BASELINES, *(m for m in methods if m != outcome.method), *shared, outcome.method]:
        found = table.loc[name]
        row = {"model": name, "trained": None, "mase": found["value"], "low": found["low"], "high": found["high"]}
        if name != FROZEN:
            row |= {key: float(found[key]) for key in ("change", "change_low", "change_high", "worst")}
            row["wins"] = int(found["wins"])
        if name in methods:
            facts = [result.methods[name] for result in outcome.results]
            row |= {"trained": facts[0]["trained"], "fallback": used.loc[name, "value"]}
            row |= {"fallback_low": used.loc[name, "low"], "fallback_high": used.loc[name, "high"]}
            row |= {f"uses_{what}": sum(fact["uses"] == what for fact in facts) for what in ("own", "shared", "base")}
        rows.append(ModelRow(**{key: value.item() if hasattr(value, "item") else value for key, value in row.items()}))
    by_device = plain.pivot(index="unique_id", columns="model", values="mase")
    again = kept.pivot(index="unique_id", columns="model", values="mase")[methods]
    return rows, by_device.join(again.add_suffix(" with fallback"))


def inputs(frame: pd.DataFrame, ids: Sequence[str], time_zone: str) -> pd.DataFrame:
    """What the base reads of some devices: y and the calendar."""
    return with_calendar(frame.loc[frame["unique_id"].isin(ids), ["unique_id", "ds", "y"]], time_zone=time_zone)


def leave(outcome: Outcome) -> None:
    """Write metrics.jsonl, report.html and, last of all, summary.json."""
    run, (rows, by_device) = outcome.run, model_rows(outcome)
    methods = outcome.results[0].methods
    write_text(run.folder / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in _lines(outcome, by_device)))
    summary = {
        "rows": [asdict(row) for row in rows],
        "devices": _devices(outcome, by_device),
        "method": outcome.method,
        "what": outcome.world.what,
        "fleet": {name: getattr(outcome.fleet, name) for name in ("name", "what", "licence", "source")},
        "base_parameters": sum(p.numel() for p in outcome.base.net.parameters()),
        "seconds": {name: sum(result.methods[name]["seconds"] for result in outcome.results) for name in methods},
        "settings": dict(run.settings),
        "versions": {name: importlib.metadata.version(name) for name in ("audiolora", "torch", "peft", "transformers")},
    }
    write_series_report(run.folder / "report.html", _report(outcome, summary, rows))
    run.write("summary.json", summary)


def show(run: Run) -> None:
    """Print a finished run's table, and where to look next."""
    summary = run.read("summary.json")
    folder, data = run.folder, run.settings["data"]
    print_models(
        [ModelRow(**row) for row in summary["rows"]],
        devices=len(summary["devices"]),
        title=f"{summary['fleet']['name']}, {run.settings['history_days']:g} days of history; {summary['what']}",
        next_steps=[
            ("report", str(folder / "report.html")),
            ("adapters", f"{folder / 'devices'}/*/adapter ({summary['method']})"),
            ("try it", f"audiolora forecast {folder} {data if Path(data).is_file() else 'YOUR.csv'}"),
        ],
    )


def _lines(outcome: Outcome, by_device: pd.DataFrame) -> list[dict[str, Any]]:
    """The base's epochs, then a line a device and method."""
    lines: list[dict[str, Any]] = [
        {"base": True, **{k: None if pd.isna(v) else v for k, v in row.items()}}
        for row in outcome.epochs.astype(object).to_dict("records")
    ]
    for result in outcome.results:
        for method, facts in result.methods.items():
            errors = {
                "mase": by_device.loc[result.unique_id, method],
                "frozen": by_device.loc[result.unique_id, FROZEN],
            }
            errors["with_fallback"] = by_device.loc[result.unique_id, f"{method} with fallback"]
            lines.append({"device": result.unique_id, "method": method, **errors, **facts})
    return lines


def _devices(outcome: Outcome, by_device: pd.DataFrame) -> list[tuple[str, float, float, str]]:
    used = {result.unique_id: result.methods[outcome.method]["uses"] for result in outcome.results}
    columns = by_device[[FROZEN, f"{outcome.method} with fallback"]].dropna()
    return [(str(name), float(row.iloc[0]), float(row.iloc[1]), used[str(name)]) for name, row in columns.iterrows()]


def _report(outcome: Outcome, summary: dict[str, Any], rows: list[ModelRow]) -> SeriesReport:
    run, fleet, plan = outcome.run, outcome.fleet, outcome.plan
    curve = outcome.epochs
    notes = [
        f"{outcome.world.what[0].upper()}{outcome.world.what[1:]}.",
        f"{len(plan.learned)} devices to learn from until {plan.base_until}; {len(plan.unseen)} that the base never "
        f"saw, adapted at {plan.adapted_at} from {run.settings['history_days']:g} days; "
        f"scored on {outcome.results[0].forecasts['cutoff'].nunique()} cutoffs until {plan.scored_until}.",
    ]
    facts = [
        ("data", f"{fleet.name}: {fleet.what}"),
        ("base", f"{summary['base_parameters']:,} parameters"),
        *((name.replace("_", " "), str(value)) for name, value in run.settings.items()),
        *((f"seconds, {name}", f"{value:.0f}") for name, value in summary["seconds"].items()),
    ]
    return SeriesReport(
        title=f"{fleet.name}, {run.folder.name}",
        subtitle=outcome.world.what,
        rows=rows,
        chosen=outcome.method,
        devices=[tuple(device) for device in summary["devices"]],
        forecasts=_forecasts(outcome, summary["devices"]),
        loss=list(zip(curve["epoch"], curve["loss"], strict=True)),
        eval_loss=list(zip(curve["epoch"], curve["val_loss"], strict=True)),
        facts=facts,
        notes=notes,
        usage=series_usage(run.folder, str(run.settings["data"])),
        attribution=[f"Data: {fleet.source}; {fleet.licence}"],
    )


def _forecasts(outcome: Outcome, devices: Sequence[tuple[str, float, float, str]]) -> list[DeviceForecast]:
    """The devices of the largest, the median and the smallest gain, at the cutoff of their own median gain."""
    ordered = sorted(devices, key=lambda device: device[2] / device[1])
    places = {0: "the largest gain", len(ordered) // 2: "the median", len(ordered) - 1: "the smallest gain"}
    results = {result.unique_id: result.with_fallback() for result in outcome.results}
    return [
        _drawn(outcome, results[ordered[at][0]], f"{what}, MASE {ordered[at][1]:.3f} → {ordered[at][2]:.3f}")
        for at, what in sorted(places.items())
    ]


def _drawn(outcome: Outcome, table: pd.DataFrame, caption: str) -> DeviceForecast:
    method, table = outcome.method, table.dropna(subset=["y"])
    gain = (table[method] - table["y"]).abs() - (table[FROZEN] - table["y"]).abs()
    by_cutoff = gain.groupby(table["cutoff"]).mean().sort_values()
    cutoff = by_cutoff.index[len(by_cutoff) // 2]
    ahead, unique_id = table[table["cutoff"] == cutoff], str(table["unique_id"].iloc[0])
    known = outcome.world.deployed
    past = known[(known["unique_id"] == unique_id) & (known["ds"] <= cutoff)]
    past = past[past["ds"] > cutoff - pd.Timedelta(days=_PAST_DAYS)]
    past_h, ahead_h = (((part["ds"] - cutoff) / pd.Timedelta("1h")).to_numpy(np.float64) for part in (past, ahead))
    y, before, after = (ahead[name].to_numpy(np.float64) for name in ("y", FROZEN, method))
    return DeviceForecast(unique_id, past_h, past["y"].to_numpy(np.float64), ahead_h, y, before, after, caption)
