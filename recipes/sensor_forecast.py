"""One frozen forecaster, an adapter for every sensor: try it on a fleet.

    python recipes/sensor_forecast.py --shift resample
    python recipes/sensor_forecast.py --data pumps.parquet --name pumps
    audiolora forecast runs/pumps pumps.parquet

It pretrains a base on some devices of a fleet, adapts it to the others from
N days of their history in several ways, and scores forecasts from a rolling
origin behind that, beside seasonal naive and a ridge regression a device.
It leaves base, adapters, forecasts, figures and report in runs/NAME. The same
command continues a run that was interrupted: what is done is not done again.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter

from audiolora.cli import run_app
from audiolora.series.settings import AdaptSettings, BaseSettings, FileSettings

app = App(help=__doc__, help_format="plaintext")
Method = Literal["head", "bias", "full", "lora", "lora+head+bias", "dora"]
ALL: tuple[Method, ...] = ("head", "bias", "full", "lora", "lora+head+bias", "dora")


@app.default
def main(
    *,
    data: str = "citylearn",
    freq: str | None = None,
    seasonality: int | None = None,
    shift: Literal["none", "sensor", "season", "recalibrate", "rate", "resample"] = "none",
    base_column: str = "load_kwh",
    unseen: int = 6,
    history_days: float = 28,
    test_days: float = 28,
    end: str | None = None,
    method: Method = "lora+head+bias",
    compare: tuple[Method, ...] = ALL,
    base: Annotated[BaseSettings, Parameter(name="*")] = BaseSettings(),  # noqa: B008
    adapt: Annotated[AdaptSettings, Parameter(name="*")] = AdaptSettings(),  # noqa: B008
    file: Annotated[FileSettings, Parameter(name="*")] = FileSettings(),  # noqa: B008
    name: str = "series",
    out: Path = Path("runs"),
    fresh: bool = False,
) -> None:
    """Adapt a forecaster to devices it never saw.

    Args:
        data: a fleet to fetch (citylearn, simbench, turbines, meters), or a CSV or Parquet file, long (a row a device
            and stamp) or wide (a column a device).
        freq: the step, such as h or 15min; by default the most frequent one of the file.
        seasonality: steps a season has, for the seasonal naive forecast and MASE; by default a day's.
        shift: what is new about the unseen devices: none; sensor (the base learned from another column); season (the
            base ends half a year earlier); recalibrate (slow answer, other gain, zero and sign); rate (changes instead
            of levels); resample (the base learned at half the sampling rate). The last three are simulated.
        base_column: for --shift sensor, the column that the base learns from.
        unseen: how many devices the base never sees; --seed draws them.
        history_days: what each of them has measured when it is adapted.
        test_days: how long forecasts are scored after that.
        end: last stamp to score, such as 2017-03-01; by default the end of the data.
        method: the one whose adapters are kept for `audiolora forecast`.
        compare: the methods to train; with fewer it is done sooner.
        name: of the run; everything goes to OUT/NAME.
        out: folder of runs.
        fresh: delete the run of this name and begin anew.
    """
    from rich.console import Console
    from rich.progress import track

    from audiolora.report import series_run
    from audiolora.run import open_run
    from audiolora.series.adaptation import adapt as adapted
    from audiolora.series.calendar import CALENDAR
    from audiolora.series.checks import check, keep_good
    from audiolora.series.deployment import deploy
    from audiolora.series.device_results import device_folder, run_device
    from audiolora.series.fleets import open_fleet
    from audiolora.series.forecaster import Forecaster
    from audiolora.series.nets import base_network
    from audiolora.series.shifts import apply_shift

    # The run's folder: a finished one is shown again, an interrupted one continues.
    console, methods = Console(), tuple(dict.fromkeys((*compare, method)))
    asked = dict[str, object](data=data, freq=freq, seasonality=seasonality, shift=shift, base_column=base_column)
    asked |= {"unseen": unseen, "history_days": history_days, "test_days": test_days, "end": end, "method": method}
    asked |= {"compare": methods, **asdict(base), **asdict(adapt), **asdict(file)}
    run = open_run(out / name, asked, fresh=fresh)
    if run.finished:
        return series_run.show(run)

    # The fleet, checked device by device before anything is trained; then what is new about the devices to come.
    fleet = open_fleet(data, freq=freq, seasonality=seasonality, columns=file.columns)
    findings = check(fleet.frame, freq=fleet.freq, lookback=base.lookback, horizon=base.horizon)
    clean = f"{len(findings.devices)} devices, every {fleet.freq}: nothing wrong"
    console.print(findings.rich_table() if len(findings.table) else clean)
    if not file.drop_bad:
        findings.raise_if_bad()
    good = keep_good(fleet.frame, findings)
    world = apply_shift(shift, good, freq=fleet.freq, seasonality=fleet.seasonality, base_column=base_column)
    spans: dict[str, Any] = {"history_days": history_days, "test_days": test_days, "end": end}
    plan = deploy(world.deployed, unseen=unseen, away=world.away, seed=adapt.seed, **spans)
    run.write("split.json", plan.to_dict() | {"freq": world.deployed_freq, "seasonality": world.seasonality})
    console.print(f"[bold]{world.what}[/]\n{len(plan.learned)} devices to learn from until {plan.base_until}, ", end="")
    console.print(f"{len(plan.unseen)} new ones, adapted at {plan.adapted_at}")

    # The base, on the devices to learn from; it forecasts from y and the calendar.
    reads: dict[str, Any] = {"lookback": base.lookback, "horizon": base.horizon, "known": CALENDAR}
    frozen = Forecaster(base_network(run.settings), freq=world.learned_freq, **reads)
    known = series_run.inputs(world.learned, plan.learned, file.time_zone)
    taught: dict[str, Any] = {"epochs": base.base_epochs, "lr": base.base_lr, "stride": base.base_stride}
    epochs = frozen.fit(known, until=plan.base_until, val=base.base_val, seed=adapt.seed, out=run.training, **taught)
    frozen.save(run.folder / "base")

    # What is new about all new devices at once: an adapter that they share, a method.
    deployed = frozen.over(frozen.net, freq=world.deployed_freq)
    rows = series_run.inputs(world.deployed, plan.unseen, file.time_zone)
    history = rows[(rows["ds"] > plan.history_after) & (rows["ds"] <= plan.adapted_at)]
    shared: dict[str, Forecaster | None] = dict.fromkeys(methods)
    if adapt.start == "fleet" and len(plan.unseen) > 1:
        for one in track(methods, description="shared adapters", console=console):
            found = adapted(deployed, history, one, adapt, out=run.training / f"shared {one}").forecaster
            if one == method:
                found.save(run.folder / "shared")
            shared[one] = found

    # Each of them: every method from its own history on, scored at the same cutoffs.
    results = []
    for unique_id in track(plan.unseen, description="devices", console=console):
        folder, own = device_folder(run.folder, unique_id), rows[rows["unique_id"] == unique_id]
        told: dict[str, Any] = {"keep": method, "seasonality": world.seasonality, "folder": folder}
        results.append(run_device(deployed, own, plan, shared, adapt, **told))

    # What the run leaves.
    series_run.leave(series_run.Outcome(run, fleet, world, plan, frozen, epochs, results))
    return series_run.show(run)


if __name__ == "__main__":
    run_app(app)
