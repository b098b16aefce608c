"""The command line: ``audiolora`` and its commands, of which those of one subject stand in a file of their own.

Heavy imports stand inside the functions that need them, so that ``--help`` is quick.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, NoReturn

from cyclopts import App, Parameter

from audiolora.bundle_commands import export, keys, verify
from audiolora.compare_commands import compare
from audiolora.data_commands import data_app
from audiolora.sharing_commands import convert, push
from audiolora.speech_commands import merge, transcribe
from audiolora.terminal import EXIT_LEFT_OUT, prepare_transformers, say, write_result

DEBUG_VARIABLE = "AUDIOLORA_DEBUG"
EPILOGUE = f"An error is told in one line; --debug, or {DEBUG_VARIABLE}=1, shows where it happened."
EXIT_ERROR, EXIT_INTERRUPTED, EXIT_PIPE = 2, 130, 141

Flag = Annotated[bool, Parameter(negative="")]

app = App(
    name="audiolora",
    help="Low-rank adapters inside the 1-D convolutions of audio and time-series models.",
    help_format="markdown",
    help_epilogue=EPILOGUE,
)


@app.command
def forecast(
    run: Path,
    data: Path,
    /,
    *,
    others: Literal["base", "shared"] = "base",
    id_column: str = "unique_id",
    time_column: str = "ds",
    target_column: str = "y",
    format: Literal["csv", "json"] = "csv",
    skip_bad: Flag = False,
    out: Path | None = None,
) -> int:
    """Forecast what comes after a file of sensor histories, with a finished run of recipes/sensor_forecast.py.

    Each device is forecast by what was best on its own validation days: its own adapter, the one that the run's devices
    share, or the base; the column "model" says which. Forecasts go to stdout, warnings to stderr. Exit status: 0, every
    device is forecast; 2, an error, and nothing is written; 3, --skip-bad left devices out.

    Args:
        run: the run's folder, such as runs/demo-series.
        data: a CSV or Parquet file, long (a row a device and stamp) or wide (a column a device), with at least the
            base's lookback of measurements a device, at the step of the run's devices.
        others: what forecasts devices that the run does not know: its base, or the adapter that its devices share.
        id_column: column that names the device.
        time_column: column with the stamps; those without an offset are UTC.
        target_column: column with the measurements.
        format: csv (unique_id, ds, cutoff, forecast, model) or json (a list of objects).
        skip_bad: leave devices out that cannot be forecast, each named with its reason, instead of stopping.
        out: write the forecasts into this file instead of to stdout.
    """
    prepare_transformers()
    from audiolora.run import read_run
    from audiolora.series.applying import base_of_run, device_folder, forecast_with_run
    from audiolora.series.checks import check, keep_good
    from audiolora.series.frames import read

    if out is not None and out.is_dir():
        raise ValueError(f"--out {out} is a folder; name a file")
    base = base_of_run(read_run(run))
    frame = read(data, id_col=id_column, time_col=time_column, target_col=target_column, errors="report")
    findings = check(frame, freq=base.freq, lookback=base.lookback)
    if not skip_bad:
        findings.raise_if_bad()
    found = forecast_with_run(run, keep_good(frame, findings), others=others)
    for one in findings.table[findings.table["bad"]].itertuples():
        say(f"left out: {one.unique_id}, {one.column}: {one.problem}: {one.detail}")
    missing = [name for name in findings.devices if name not in set(found["unique_id"])]
    gaps = [name for name in missing if name not in findings.bad_ids]
    for name in gaps:
        say(f"{'left out: ' if skip_bad else ''}{name}: a gap in its last {base.lookback} steps")
    if gaps and not (skip_bad and len(found)):
        raise ValueError(f"{len(gaps)} devices cannot be forecast; fill their gaps, or leave them out with --skip-bad")
    strangers = [name for name in found["unique_id"].unique() if not device_folder(run, name).is_dir()]
    if strangers:
        say(f"not among the run's devices, so forecast by its {others}: {', '.join(strangers)}")
    text = found.to_csv(index=False) if format == "csv" else found.to_json(orient="records", date_format="iso") + "\n"
    write_result(text, out)
    return EXIT_LEFT_OUT if missing else 0


@app.command
def inspect(run: Path, /) -> None:
    """Show what an adapter adapts, what it was trained on, and the error rates before and after.

    The base model is not loaded. A run that is not finished says how far it got.

    Args:
        run: a run's folder such as runs/demo, an adapter's folder or its name on the hub, or the folder of any LoRA,
            DoRA, LoHa, LoKr or AdaLoRA adapter of PEFT.
    """
    from rich.console import Console

    from audiolora.report.adapter_table import CONFIG_FILE
    from audiolora.report.run_facts import print_adapter, print_run
    from audiolora.run import read_run
    from audiolora.speech.hub import local_adapter

    run = local_adapter(run)
    if (run / CONFIG_FILE).is_file():
        return print_adapter(run, Console())
    if (run / "settings.json").is_file():
        return print_run(read_run(run), Console())
    found = "no such folder" if not run.is_dir() else "neither settings.json nor adapter_config.json is in it"
    raise ValueError(f"{run} holds neither a run nor an adapter ({found}); name a folder such as runs/demo")


for _command in (transcribe, merge, compare, convert, push, data_app, export, verify, keys):
    app.command(_command)


def run_app(app: App, arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command line and end the process: errors in one line and status 2, an interrupt quietly and status 130.

    An exception that neither audiolora raised nor the machine (a full disk, a file that cannot be read) is a fault of
    the program and keeps its traceback; ``--debug`` or the environment variable AUDIOLORA_DEBUG shows every one.

    Args:
        app: the command line; an integer that a command returns is the exit status.
        arguments: ``sys.argv[1:]`` by default.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words or os.environ.get(DEBUG_VARIABLE, "0") not in ("", "0")
    app.help_epilogue = EPILOGUE
    try:
        status = app([word for word in words if word != "--debug"], result_action="return_value")
        sys.stdout.flush()
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:  # whoever read our output has enough; Python would complain once more when it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_PIPE)
    except Exception as error:
        message = _told_in_a_line(error)
        if debug or message is None:
            raise
        say(f"error: {message}")
        sys.exit(EXIT_ERROR)
    sys.exit(status if isinstance(status, int) else 0)


def _told_in_a_line(error: Exception) -> str | None:
    """The message of an error that the user can mend, or None for any other."""
    if isinstance(error, OSError):
        return str(error)
    if type(error).__name__ == "SafetensorError" or "inline_container.cc" in str(error):  # how torch.save puts it
        return f"a file of weights could not be written or read: {error}; is the disk full?"
    raised_in = error.__traceback__
    while raised_in is not None and raised_in.tb_next is not None:
        raised_in = raised_in.tb_next
    module = "" if raised_in is None else raised_in.tb_frame.f_globals.get("__name__", "")
    ours = any(name.partition(".")[0] == "audiolora" for name in (module, type(error).__module__))
    return str(error) if ours and isinstance(error, (ValueError, TypeError, ImportError)) else None


def main() -> NoReturn:
    """The command ``audiolora``."""
    run_app(app)
