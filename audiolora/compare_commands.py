"""``audiolora compare``: whether one run makes fewer errors than another, from the command line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from audiolora.terminal import say

if TYPE_CHECKING:
    from audiolora.speech.texts.results import Hypotheses

Flag = Annotated[bool, Parameter(negative="")]


def compare(
    *runs: Path,
    references: Path | None = None,
    unit: Literal["word", "character"] = "word",
    normalize: Literal["auto", "whisper", "basic", "language", "none"] | None = None,
    language: str | None = None,
    common: Flag = False,
    confidence: float = 0.95,
    seed: int = 0,
    json: Flag = False,
    report: Path | None = None,
) -> None:
    """Compare speech runs, each with the first, on the same test utterances: is the difference more than luck?

    The interval of the difference leaves 0 out where two runs can be told apart: overlapping intervals of their own say
    little. One run alone is compared with its own zero-shot. Exit status: 0, compared; 2, an error, such as other test
    sets.

    Args:
        runs: folders of finished runs such as runs/a runs/b; with --references, text files with an utterance a line.
        references: what was said, an utterance a line; the systems are text files then.
        unit: what the differences and their tests count: word, or character (languages without spaces).
        normalize: rules for all texts, instead of those the runs were scored by: auto (whisper for English, basic for
            others), whisper, basic (case and punctuation; marks kept), language (its own, by whisper-normalizer), none.
            Text files need it; theirs is auto.
        language: code of the texts' language, for --normalize; the runs' own by default.
        common: compare the utterances that all runs share, where their test sets differ.
        confidence: level of the intervals, between 0 and 1.
        seed: of the bootstrap.
        json: print JSON instead of a table.
        report: write an HTML page with the utterances that changed most.
    """
    from audiolora.report.compared import as_json, table, write_compared
    from audiolora.speech.texts.compared import compare as compare_systems
    from audiolora.speech.texts.normalizing import Normalizer

    if report is not None and report.is_dir():
        raise ValueError(f"--report {report} is a folder; name a file such as compared.html")
    systems = _systems(runs, references)
    if normalize is None and references is None:
        if language is not None:
            raise ValueError("--language goes with --normalize or --references: the runs' texts are normalised already")
        rules = None
    else:
        known = [one.normalize["language"] for one in systems if one.normalize and one.normalize["language"]]
        rules = Normalizer(normalize or "auto", language or next(iter(known), None))
    found = compare_systems(systems, normalize=rules, unit=unit, common=common, confidence=confidence, seed=seed)
    for note in found.notes:
        say(f"note: {note}")
    if json:
        import json as encoder

        print(encoder.dumps(as_json(found), indent=2, ensure_ascii=False))
    else:
        from rich.console import Console

        Console().print(table(found))
    if report is not None:
        write_compared(report, found)
        say(f"report: {report}")


def _systems(runs: tuple[Path, ...], references: Path | None) -> list[Hypotheses]:
    from audiolora.speech.texts.results import read_text_files, read_texts

    if references is not None:
        if len(runs) < 2:
            raise ValueError(f"--references needs two text files or more to compare, got {len(runs)}")
        return read_text_files(runs, references)
    if not runs:
        raise ValueError("name two runs such as runs/a runs/b, or one to compare it with its own zero-shot")
    files = [str(run) for run in runs if run.is_file()]
    if files:
        raise ValueError(f"{', '.join(files)}: not a run's folder; text files are compared with --references FILE")
    if len(runs) == 1:
        return list(read_texts(runs[0]))
    found = [read_texts(run)[1] for run in runs]
    if len({one.name for one in found}) < len({run.resolve() for run in runs}):  # runs/en/demo and runs/it/demo
        found = [replace(one, name=str(run)) for one, run in zip(found, runs, strict=True)]
    return found
