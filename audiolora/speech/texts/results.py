"""The texts that a run's models wrote of its test utterances: kept beside its figures, so that runs can be compared.

texts.jsonl has a line an utterance: its id, what was said (reference) and written (before: zero-shot, after: adapted),
the same three as they were compared, normalised, and the speaker where one is known.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from audiolora.files import write_text
from audiolora.run import read_run
from audiolora.speech.data.utterance import Utterance

TEXTS_FILE = "texts.jsonl"
_TEXTS = ("reference", "before", "after")


@dataclass(frozen=True)
class Written:
    """What one system wrote of an utterance.

    Args:
        reference: what was said.
        text: what was written.
        compared: both as the run compared them; None if nobody did yet.
        speaker: who spoke, where it is known.
    """

    reference: str
    text: str
    compared: tuple[str, str] | None = None
    speaker: str | None = None


@dataclass(frozen=True)
class Hypotheses:
    """What one system wrote of a test set.

    Args:
        name: of the system, as tables show it.
        texts: by utterance.
        normalize: the record of the rules that ``compared`` went by (`Normalizer.record`).
        facts: what two systems should have in common: data, channel.

    Raises:
        ValueError: no utterance.
    """

    name: str
    texts: Mapping[str, Written]
    normalize: Mapping[str, Any] | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.texts:
            raise ValueError(f"{self.name}: no utterance in it")


def keep_texts(
    folder: Path,
    utterances: Sequence[Utterance],
    before: Sequence[str],
    after: Sequence[str],
    normalize: Callable[[str], str],
) -> None:
    """Leave a run's texts.jsonl, whole or not at all.

    Args:
        folder: of the run.
        utterances: the test utterances.
        before, after: what the zero-shot and the adapted model wrote, in the same order.
        normalize: what the error rates were counted by.

    Example:
        >>> keep_texts(run.folder, heard.utterances, before, after, normalize)  # doctest: +SKIP
    """
    lines = []
    for utterance, *written in zip(utterances, before, after, strict=True):
        texts = dict(zip(_TEXTS, (utterance.text, *written), strict=True))
        row: dict[str, Any] = {"id": utterance.id, **texts}
        row["compared"] = {name: " ".join(normalize(text).split()) for name, text in texts.items()}
        if utterance.speaker is not None:
            row["speaker"] = utterance.speaker
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    write_text(folder / TEXTS_FILE, "".join(lines))


def read_texts(folder: Path) -> tuple[Hypotheses, Hypotheses]:
    """What a run's zero-shot and its adapted model wrote.

    Args:
        folder: of a finished run.

    Raises:
        ValueError: no run, one that keeps no texts, or a file that is not what `keep_texts` leaves.

    Example:
        >>> before, after = read_texts(Path("runs/demo"))  # doctest: +SKIP
    """
    run = read_run(folder)
    if not run.finished:
        raise ValueError(f"{folder}: this run is not finished; the command that began it continues it")
    path = folder / TEXTS_FILE
    if not path.is_file():
        raise ValueError(
            f"{folder} keeps no texts of its test clips ({TEXTS_FILE}): an older version made it, or it is no run of "
            "speech; run it anew with --fresh, or compare text files with --references"
        )
    before: dict[str, Written] = {}
    after: dict[str, Written] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n")[:-1], start=1):
        try:
            row = json.loads(line)
            for when, texts in (("before", before), ("after", after)):
                compared = (str(row["compared"]["reference"]), str(row["compared"][when]))
                texts[row["id"]] = Written(str(row["reference"]), str(row[when]), compared, row.get("speaker"))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} line {number}: not a row of texts ({error!r}); start anew with --fresh") from None
    name, rules = folder.resolve().name, run.read("summary.json").get("normalize")
    facts = {fact: run.settings[fact] for fact in ("data", "channel") if fact in run.settings}
    return Hypotheses(f"{name}, zero-shot", before, rules, facts), Hypotheses(name, after, rules, facts)


def read_text_files(files: Sequence[Path], references: Path) -> list[Hypotheses]:
    """Systems whose texts lie in plain files, an utterance a line, beside a file of references.

    Args:
        files: a system each.
        references: as many lines; an utterance is named by its number.

    Raises:
        ValueError: a file that is not there or not UTF-8, or files of different lengths.
    """
    spoken, found = _lines(references), []
    for path in files:
        written = _lines(path)
        if len(written) != len(spoken):
            raise ValueError(
                f"{path} has {len(written)} lines and {references} has {len(spoken)}; they need one for each "
                "utterance, an empty one where nothing was written"
            )
        pairs = enumerate(zip(spoken, written, strict=True), start=1)
        found.append(Hypotheses(str(path), {f"line {number}": Written(*pair) for number, pair in pairs}))
    return found


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        raise ValueError(f"{path}: no such file; name a text file with an utterance a line")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error}); save it as UTF-8") from None
    return text.removesuffix("\n").split("\n") if text else []
