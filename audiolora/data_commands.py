"""``audiolora data``: sets of recorded speech, from the command line."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from audiolora.terminal import EXIT_LEFT_OUT, prepare_transformers, say, write_result

if TYPE_CHECKING:
    from audiolora.speech.checks.model_limits import ModelLimits

Flag = Annotated[bool, Parameter(negative="")]

data_app = App(name="data", help_format="markdown")


@data_app.default
def data(name: str = "list", /) -> None:
    """Check speech data before training, and fetch the built-in sets.

    `audiolora data check train.csv` says what would go wrong; `audiolora data prompts-en` fetches a built-in set as any
    user would; without a name, they are listed.

    Args:
        name: of a built-in set such as prompts-en, or list.
    """
    from audiolora.speech.data.prompts import BUILTIN, fetch_builtin

    if name == "list":
        for builtin in BUILTIN.values():
            print(f"{builtin.name:<14} {builtin.description}; {builtin.licence}")
    else:
        print(fetch_builtin(name))


@data_app.command
def check(
    *manifests: str,
    model: str | None = None,
    vocabulary: str | None = None,
    language: str | None = None,
    channel: str = "clean",
    max_duration: float | None = None,
    audio_column: str = "audio",
    text_column: str = "text",
    workers: int | None = None,
    fresh: Flag = False,
    json: Flag = False,
    bad_rows: Path | None = None,
    out: Path | None = None,
) -> int:
    """Say what would go wrong with speech data before anything is trained on it.

    Every clip is decoded and every text read: rows that training refuses are bad; rows that somebody should listen to
    first are doubtful. Give train, dev and test together to find what they share. What was measured is kept, and a clip
    that has not changed is not decoded again. Exit status: 0, no row is bad; 2, an error; 3, some rows are bad.

    Args:
        manifests: JSONL, CSV or TSV manifests, folders, saved `datasets` directories, or built-in sets: each a part.
        model: also what this Whisper or CTC model takes: its longest clip, its tokens, its letters.
        vocabulary: also texts outside this alphabet: a vocab.json, a file with a letter a line, or the letters.
        language: of the texts, for their normalisation: a code such as it.
        channel: simulated channels of the training, which may make clips longer, such as rate0.5.
        max_duration: the longest clip, seconds; by default the recipes' 30.
        audio_column: column of the manifests that names the audio file.
        text_column: column of the manifests with the transcript.
        workers: processes that decode; by default one for each core.
        fresh: measure every clip anew, whatever was kept.
        json: write everything to stdout as JSON, for machines.
        bad_rows: also list every bad row with its reason in this table of tab-separated values.
        out: also write everything into this HTML page.
    """
    from rich.console import Console

    from audiolora.speech.checks.clip_cache import ClipCache
    from audiolora.speech.checks.data_check import check_data, read_parts
    from audiolora.speech.data.findings import write_findings
    from audiolora.speech.sound.channels import parse_channel

    for option, path in (("--out", out), ("--bad-rows", bad_rows)):
        if path is not None and path.is_dir():
            raise ValueError(f"{option} {path} is a folder; name a file")
    if not manifests:
        raise ValueError("name what to check: audiolora data check train.csv")
    limits = _limits(model, vocabulary, language, max_duration)
    stretch = parse_channel(channel).stretch
    parts = read_parts(manifests, audio_column=audio_column, text_column=text_column)
    found = check_data(parts, limits, stretch=stretch, workers=workers, cache=ClipCache(anew=fresh))
    if out is not None:
        from audiolora.report.data_check import write_data_report

        facts = [("manifests", ", ".join(manifests)), ("checked against", limits.called), ("channel", channel)]
        write_data_report(out, found, facts=facts)
        say(f"report: {out}")
    if bad_rows is not None:
        write_findings(bad_rows, found.bad)
        say(f"{len(found.bad):,} bad rows: {bad_rows}")
    if json:
        from json import dumps

        write_result(dumps(found.as_json(), indent=2) + "\n", None)
    else:
        from audiolora.report.data_check import print_data_check

        print_data_check(found, Console())
    return EXIT_LEFT_OUT if found.bad else 0


def _limits(model: str | None, vocabulary: str | None, language: str | None, max_duration: float | None) -> ModelLimits:
    """What the options say the clips and texts must be."""
    from dataclasses import replace

    from audiolora.speech.checks.model_limits import ModelLimits, limits_of_model, limits_of_vocabulary

    if model is not None and vocabulary is not None:
        raise ValueError("--model brings its own vocabulary; give --model or --vocabulary")
    if language is not None and model is None:
        raise ValueError("--language goes with --model: it says how the model's texts are normalised")
    if max_duration is not None and not max_duration > 0:
        raise ValueError(f"--max-duration must be above 0 s, got {max_duration:g}")
    if model is not None:
        prepare_transformers()
        limits = limits_of_model(model, language=language, log=say)
    else:
        limits = ModelLimits() if vocabulary is None else limits_of_vocabulary(vocabulary)
    return limits if max_duration is None else replace(limits, max_duration_s=max_duration)
