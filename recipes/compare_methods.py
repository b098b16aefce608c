"""Which method for your model and your data? Every way of adapting beside the others.

    python recipes/compare_methods.py --task sensor
    python recipes/compare_methods.py --task sensor --data pumps.csv --shift none
    python recipes/compare_methods.py --task speech --data calls.csv --model openai/whisper-small --language en
    python recipes/compare_methods.py --task ctc --data calls.csv --model facebook/wav2vec2-base-960h

Each way is trained for the same steps: the learning rate is chosen on a
development split, then several seeds are trained at it and measured on a test
split. Adapters have the same number of parameters. It leaves a table, a plot
and a report in runs/NAME. The same command continues a run that was
interrupted: a training that is done is not done again.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from audiolora.cli import run_app
from audiolora.comparison.settings import FleetSpan

app = App(help=__doc__, help_format="plaintext")


@app.default
def main(
    *,
    task: Literal["sensor", "speech", "ctc"] = "sensor",
    data: str | None = None,
    model: str | None = None,
    channel: str | None = None,
    language: str | None = None,
    shift: Literal["none", "sensor", "season", "recalibrate", "rate", "resample"] = "resample",
    ways: Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative="")] = (),
    learning_rates: Annotated[tuple[float, ...], Parameter(consume_multiple=True, negative="")] = (1e-3, 3e-3, 1e-2),
    seeds: int = 3,
    parameters: int | None = None,
    epochs: int | None = None,
    train_clips: int | None = None,
    test: int | float | None = None,
    dev: int | float | None = None,
    fleet: Annotated[FleetSpan, Parameter(name="*")] = FleetSpan(),  # noqa: B008
    engine: Literal["local", "ray"] = "local",
    address: str | None = None,
    jobs: Annotated[int, Parameter(name=["--jobs", "-j"])] = 1,
    threads: int = 1,
    name: str | None = None,
    out: Path = Path("runs"),
    fresh: bool = False,
) -> None:
    """Compare ways of adapting.

    Args:
        task: sensor, a forecaster on devices it never saw; speech, a Whisper on a channel or your recordings; or ctc, a
            model of the wav2vec2 family on the same.
        data: for sensor a fleet to fetch or a CSV or Parquet file (by default citylearn); for speech and ctc a manifest
            or a built-in set (by default prompts-en and spoken-digits).
        model: a hub name or a local directory; by default openai/whisper-tiny.en, and for ctc scratch:spoken-digits, a
            small one that is trained here from scratch.
        channel: simulated channels such as gsm,noise10dB, or clean for recordings as they are; by default invert for
            speech and ssb+500Hz for ctc.
        language: for speech and ctc, what is spoken in rows that have no column "language", such as it; a multilingual
            Whisper needs one.
        shift: for sensor, what is new about the unseen devices; as in recipes/sensor_forecast.py.
        ways: those to compare, by default all that the model can take: frozen, head, bias, full, lora-attention,
            lora-attention-ffn, lora-conv, lora, dora, loha, lokr, adalora, gmp, gmp-r, lora-int8, lora-nf4.
        learning_rates: of adapters; full tuning and GmP take a tenth of them, biases and magnitudes three times them.
        seeds: trained and measured at the chosen rate.
        parameters: of every adapter; by default 150,000 for speech, 30,000 for ctc and 4,000 for sensor.
        epochs: passes over the training data; by default 5 for speech, 3 for ctc, 12 for sensor.
        train_clips: how many training clips are used, 0 for all; by default 240 for speech and 1000 for ctc.
        test: clips held out to measure on, for speech and ctc: a number, or a share below 1; by default 100, or for ctc
            the data's own test part.
        dev: clips held out to choose rates and epochs by, likewise; by default 40, or for ctc the data's own part.
        engine: local, or ray: ways spread over a cluster (pip install "audiolora[ray]"); OUT must be seen by all of it.
        address: of a running Ray cluster, such as auto; by default one is begun on this machine.
        jobs: ways at once on this machine; the times in the table are ratios, but memory must hold them all.
        threads: of torch, each.
        name: of the run; everything goes to OUT/NAME. By default compare-TASK.
        out: folder of runs.
        fresh: delete the run of this name and begin anew.
    """
    import torch
    from rich.console import Console

    from audiolora.comparison.running import Grid, run_ways, trials_of
    from audiolora.comparison.tasks import PARAMETERS, make_task
    from audiolora.comparison.ways import check_ways, ways_for
    from audiolora.report import comparison_run
    from audiolora.run import open_run

    # What is compared, and the run's folder: a finished one is shown again, an interrupted one continues.
    console = Console()
    speech = dict[str, object](model=model, channel=channel, language=language)
    speech |= {"train_clips": train_clips, "test": test, "dev": dev}
    made = make_task(task, data=data, epochs=epochs, speech=speech, sensor={"shift": shift, "span": fleet})
    check_ways(ways)
    if ways:  # one that the network cannot take is told before any work
        ways_for(made.network(), ways)
    grid = Grid(learning_rates, seeds, parameters or PARAMETERS[task])
    asked = {"task": task, "ways": ways, **asdict(grid), "settings": asdict(made)}
    run = open_run(out / (name or f"compare-{task}"), asked, fresh=fresh)
    if run.finished:
        return comparison_run.show(run)

    # Done once: fetch, check, train the base; whatever is wrong is told here.
    torch.set_num_threads(threads)
    made.prepare(run.folder)
    opened = made.open(run.folder)
    chosen = ways_for(opened.base(), ways)
    run.write("ways.json", {"ways": chosen, "unit": opened.unit})
    console.print(f"{len(chosen)} ways, {sum(trials_of(grid, way) for way in chosen)} trainings: {', '.join(chosen)}")
    del opened

    # Every way in a process of its own.
    done = run_ways(made, chosen, grid, run.folder, engine=engine, jobs=jobs, threads=threads, address=address)
    comparison_run.watch(done, run, grid, console)

    # What the run leaves.
    comparison_run.leave(run)
    return comparison_run.show(run)


if __name__ == "__main__":
    run_app(app)
