"""The command line: ``audiolora transcribe | forecast | inspect | merge | data | export | verify | keys``.

Heavy imports stand inside the functions that need them, so that ``--help`` is quick.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

from cyclopts import App, Parameter

from audiolora.bundle_commands import export, keys, verify
from audiolora.terminal import say, write_result

if TYPE_CHECKING:
    import numpy as np

    from audiolora.speech.adapter import AdapterInfo
    from audiolora.speech.merging import MergedInfo

DEBUG_VARIABLE = "AUDIOLORA_DEBUG"
EPILOGUE = f"An error is told in one line; --debug, or {DEBUG_VARIABLE}=1, shows where it happened."
EXIT_ERROR, EXIT_LEFT_OUT, EXIT_INTERRUPTED, EXIT_PIPE = 2, 3, 130, 141

Flag = Annotated[bool, Parameter(negative="")]

app = App(
    name="audiolora",
    help="Low-rank adapters inside the 1-D convolutions of audio and time-series models.",
    help_format="markdown",
    help_epilogue=EPILOGUE,
)


@app.command
def transcribe(
    *audio: Path,
    adapter: Path | None = None,
    model: str | None = None,
    base: str | None = None,
    language: str | None = None,
    context: Literal["auto", "full"] | None = None,
    batch_size: int = 8,
    format: Literal["text", "json", "tsv"] = "text",
    json: Flag = False,
    skip_bad: Flag = False,
    out: Path | None = None,
) -> int:
    """Write down what is said in audio files, with an adapter or a plain Whisper.

    Texts go to stdout, progress and warnings to stderr. A file may last 30 s. Exit status: 0, every file is
    transcribed; 2, an error, and no text is written; 3, --skip-bad left files out.

    Args:
        audio: audio files (WAV, FLAC, OGG, Opus, MP3, AIFF, AU), and folders, which are searched for them.
        adapter: a run's folder such as runs/demo, or its adapter's.
        model: instead of an adapter: a hub name, the folder of a merged or other Whisper, or an OpenAI .pt file.
        base: another place for the weights that the adapter was trained over, such as a local folder.
        language: Whisper's code of the language spoken; by default the adapter's, else it is detected.
        context: what the encoder sees: each clip's own length (auto) or 30 s (full); by default what the adapter or
            merged model was trained with, and full for a plain Whisper.
        batch_size: clips decoded at once.
        format: text (path and text with a tab between; for a single file its text alone), json (a list of objects) or
            tsv (with a header).
        json: short for --format json.
        skip_bad: leave files out that cannot be transcribed, each named with its reason, instead of stopping.
        out: write the texts into this file instead of to stdout.
    """
    from audiolora.speech.transcripts import Transcript, check_audio_files, find_audio, read_by_the_hour, render

    if json and format == "tsv":
        raise ValueError("--json and --format tsv contradict each other; give one")
    if out is not None and out.is_dir():
        raise ValueError(f"--out {out} is a folder; name a file")
    if batch_size < 1:
        raise ValueError(f"--batch-size must be at least 1, got {batch_size}")
    _check_choice(adapter, model, base)
    files = find_audio(audio)
    good, bad = check_audio_files(files)
    for problem in bad:
        say(f"left out: {problem}" if skip_bad else problem)
    if bad and not (skip_bad and good):
        remedy = "nothing is left to transcribe" if skip_bad else "mend them, or leave them out with --skip-bad"
        raise ValueError(f"{len(bad)} of {len(files)} files cannot be transcribed; {remedy}")
    decode = _decoder(adapter, model, base, language, context, batch_size)
    transcripts = [
        Transcript(path, duration_s, text)
        for portion, audios in read_by_the_hour(good)
        for (path, duration_s), text in zip(portion, decode(audios), strict=True)
    ]
    write_result(render(transcripts, "json" if json else format, alone=len(files) == 1), out)
    return EXIT_LEFT_OUT if bad else 0


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
    _prepare_transformers()
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
        run: a run's folder such as runs/demo, an adapter's folder, or that of any LoRA, DoRA, LoHa, LoKr or
            AdaLoRA adapter of PEFT.
    """
    from rich.console import Console

    from audiolora.report.adapter_table import CONFIG_FILE
    from audiolora.report.run_facts import print_adapter, print_run
    from audiolora.run import read_run

    if (run / CONFIG_FILE).is_file():
        return print_adapter(run, Console())
    if (run / "settings.json").is_file():
        return print_run(read_run(run), Console())
    found = "no such folder" if not run.is_dir() else "neither settings.json nor adapter_config.json is in it"
    raise ValueError(f"{run} holds neither a run nor an adapter ({found}); name a folder such as runs/demo")


@app.command
def merge(run: Path, /, *, out: Path, base: str | None = None, overwrite: Flag = False) -> None:
    """Merge an adapter into its base: a plain Whisper that transformers alone loads.

    The merged model is loaded again and compared with the adapted one; where they differ, nothing is left.

    Args:
        run: a run's folder such as runs/demo, or its adapter's.
        out: the folder to write.
        base: another place for the weights that the adapter was trained over, such as a local folder.
        overwrite: replace the model that is in the folder.
    """
    _prepare_transformers()
    from audiolora.speech.merging import merge_adapter

    merged = merge_adapter(run, out, base=base, overwrite=overwrite, log=say)
    print(
        f"{merged.info.base_model} with {merged.info.adapter} merged, in {out} ({merged.size_bytes / 1e6:,.0f} MB)\n"
        f"checked: loaded again, its logits differ from the adapter's by at most {merged.difference:.1e}\n"
        f"load it: WhisperForConditionalGeneration.from_pretrained({str(out)!r})\n"
        f"try it:  audiolora transcribe AUDIO --model {out}"
    )
    if merged.info.context == "auto":
        print(
            "It was trained at short audio context: programs that pad to 30 s make more errors than that command does."
        )


@app.command
def data(name: str = "list", /) -> None:
    """Fetch a built-in set of recorded speech, as any user; without a name, list them.

    Args:
        name: such as prompts-en, or list.
    """
    from audiolora.speech.prompts import BUILTIN, fetch_builtin

    if name == "list":
        for builtin in BUILTIN.values():
            print(f"{builtin.name:<14} {builtin.description}; {builtin.licence}")
    else:
        print(fetch_builtin(name))


for _command in (export, verify, keys):
    app.command(_command)


def _check_choice(adapter: Path | None, model: str | None, base: str | None) -> None:
    if (adapter is None) == (model is None):
        raise ValueError("name what to transcribe with: either --adapter RUN or --model NAME")
    if adapter is None and base is not None:
        raise ValueError("--base goes with --adapter: it is another place for the adapter's base model")


def _decoder(
    adapter: Path | None,
    name: str | None,
    base: str | None,
    language: str | None,
    context: Literal["auto", "full"] | None,
    batch_size: int,
) -> Callable[[Sequence[np.ndarray]], list[str]]:
    """What turns clips into texts, set up as the adapter or merged model says, unless the user says otherwise."""
    _prepare_transformers()
    import torch

    from audiolora.speech import decode
    from audiolora.speech.adapter import load_adapted
    from audiolora.speech.merging import read_merged
    from audiolora.speech.weights import load_whisper

    info: AdapterInfo | MergedInfo | None
    if adapter is not None:
        model, whisper, info = load_adapted(adapter, base=base, log=say)
    else:
        whisper = load_whisper(str(name), log=say)
        model, info = whisper.model, read_merged(Path(str(name)).expanduser())
    trained_at = info.context if info else "full"
    if context not in (None, trained_at):
        say(f"warning: trained at context {trained_at}, decoded at {context} as asked; expect more errors")
    if info and info.language and language not in (None, info.language):
        say(f"warning: trained on language {info.language}, decoded as {language} as asked; expect more errors")
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    return lambda audios: decode.transcribe(
        model,
        whisper.processor,
        audios,
        context=context or trained_at,
        language=language or (info.language if info else None),
        batch_size=batch_size,
    )


def _prepare_transformers() -> None:
    """Before anything imports it: nothing broken beside it, and none of its own bars and warnings among our lines."""
    import warnings

    from audiolora.speech.torchaudio_extra import require_working_torchaudio_or_none

    require_working_torchaudio_or_none()
    from transformers.utils import logging

    logging.disable_progress_bar()
    # PEFT reads an attribute that transformers has renamed; no user can do anything about it.
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)


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
