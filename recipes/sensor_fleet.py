"""An adapter for every device of a fleet, from one file: meters, turbines, pumps; hundreds of them in one pass.

    python recipes/sensor_fleet.py --data meters.csv --name meters        # unique_id, ds, y; or a column a device
    python recipes/sensor_fleet.py --data new.parquet --base runs/homes   # over the base of an earlier run
    python recipes/sensor_fleet.py --data meters.csv --name meters --export "meter 7"
    python recipes/sensor_fleet.py --data meters.csv --name meters --engine ray --address auto

It reads and checks the file; a device that cannot be used is named with what is wrong, and left out. It takes the base
that you give, or trains one on a part of the devices; then it trains for each device a small adapter (a rank-1 update
in every convolution, biases, the last layer), stops each by its own validation windows, and lets a device whose
adapter loses there keep the base. It measures all of them behind that, and leaves in runs/NAME:

    adapters/      all adapters in one file; --export writes one as an ordinary PEFT adapter into devices/
    base/          the base, for Forecaster.load and for --base
    devices.csv    who gained, who lost, who fell back to the base, who was left out and why
    metrics.jsonl  each device's losses
    report.html    the same to look at; summary.json for programs

The same command continues a run that was interrupted, and shows one that is finished.
"""

import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from audiolora.cli import run_app
from audiolora.series.fleet_settings import FleetData, FleetSettings, PretrainSettings

app = App(help=__doc__, help_format="plaintext")


@app.default
def main(
    *,
    data: str = "simbench",
    base: Path | None = None,
    name: str = "fleet",
    parts: Annotated[FleetData, Parameter(name="*")] = FleetData(),  # noqa: B008
    training: Annotated[FleetSettings, Parameter(name="*")] = FleetSettings(),  # noqa: B008
    pretrain: Annotated[PretrainSettings, Parameter(name="*")] = PretrainSettings(),  # noqa: B008
    ridge: bool = True,
    engine: Literal["local", "ray"] = "local",
    address: str | None = None,
    export: tuple[str, ...] = (),
    out: Path = Path("runs"),
    fresh: bool = False,
) -> None:
    """Adapt a fleet.

    Args:
        data: a CSV or Parquet file with the columns unique_id, ds and y, or with ds and a column a device; or a fleet
            that is fetched: simbench, citylearn, turbines, meters.
        base: the run or the folder of a base; without one, it is trained here on a part of the devices.
        name: of the run; everything goes to OUT/NAME.
        ridge: also fit a ridge regression a device to compare with.
        engine: local, or ray: chunks of devices are spread over a Ray cluster; needs the extra audiolora[ray].
        address: of a running Ray cluster, such as auto; by default one begins on this machine.
        export: devices whose adapters are to be written as ordinary ones of PEFT, into OUT/NAME/devices.
        out: folder of runs.
        fresh: delete the run of this name and begin anew.
    """
    from rich.console import Console

    from audiolora.report import fleet_run
    from audiolora.report.fleet_tables import findings_table
    from audiolora.run import open_run
    from audiolora.series.fleet_engines import train_fleet
    from audiolora.series.fleet_forecaster import FleetForecaster
    from audiolora.series.fleet_preparation import prepare, trained_base
    from audiolora.series.fleet_progress import FleetBar
    from audiolora.series.fleet_results import forecasts, results
    from audiolora.series.fleet_training import keeps_base

    # The run's folder: a finished one is shown again, an interrupted one continues.
    asked = dict[str, object](data=data, base=None if base is None else str(base), ridge=ridge)
    run = open_run(out / name, asked | asdict(parts) | asdict(training) | asdict(pretrain), fresh=fresh)
    console = Console()
    if run.finished:
        fleet_run.show(run)
        return fleet_run.print_exported(run, export, console)

    # The file: what is bad is named and left out, the others go on.
    seconds, start = {}, time.monotonic()
    prepared = prepare(data, base, parts, pretrain, training)
    console.print(findings_table(prepared.findings))
    run.write("split.json", {"devices": prepared.ids, "base": prepared.learned, "times": prepared.times.to_dict()})
    seconds["reading"] = time.monotonic() - start

    # The base.
    start = time.monotonic()
    forecaster = trained_base(prepared, pretrain, training.seed, out=run.training / "base", quiet=False)
    forecaster.save(run.folder / "base")
    seconds["base"] = time.monotonic() - start

    # The adapters: each device stops by itself; one that never beat the base keeps it.
    start = time.monotonic()
    with FleetBar(len(prepared.ids), console) as bar:
        trained = train_fleet(
            forecaster, prepared.chunks(training.chunk), prepared.times, training,
            out=run.training, engine=engine, address=address, watch=bar.watch,
        )  # fmt: skip
    seconds["adapters"] = time.monotonic() - start
    kept = {id: row for id, row in trained.values.items() if not keeps_base(trained.history[id], training)}
    adapted = FleetForecaster.of(forecaster, kept, training)
    adapted.save(run.folder / "adapters")

    # Behind the validation part, where nothing was chosen: all devices, each by its own adapter, many at once.
    start, season = time.monotonic(), prepared.seasonality
    found = forecasts(
        forecaster, adapted, prepared.frame, prepared.times, season, with_ridge=ridge, stride=training.stride
    )
    scores = results(found, prepared, trained.history, list(kept))
    seconds["scoring"] = time.monotonic() - start
    parameters = sum(slot.size for slot in adapted.fleet.layout.slots)
    fleet_run.leave(fleet_run.FleetOutcome(run, prepared, scores, trained.history, parameters, seconds))
    fleet_run.show(run)
    fleet_run.print_exported(run, export, console)


if __name__ == "__main__":
    run_app(app)
