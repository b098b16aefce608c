"""What may be wrong with a row of speech data: what each kind of fault is called, how bad it is and what to do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from audiolora.files import write_text

LISTED = 20
"""Bad rows that an error or the log spells out before it counts the rest."""

Severity = Literal["bad", "doubtful"]


@dataclass(frozen=True)
class Kind:
    """One kind of fault.

    Args:
        title: what it is, in a few words.
        remedy: what to do about it.
        severity: bad, training refuses the row; doubtful, it is trained on, and somebody should look.
    """

    title: str
    remedy: str
    severity: Severity = "bad"


def _doubtful(title: str, remedy: str) -> Kind:
    return Kind(title, remedy, "doubtful")


KINDS: dict[str, Kind] = {
    "row": Kind("row that cannot be read", "mend the row in the manifest"),
    "duplicate-id": Kind("id used twice", "give each row an id of its own"),
    "missing": Kind("audio file missing", "correct the path, or remove the row"),
    "unreadable": Kind("audio file cannot be opened", "look at the file's permissions and at the disk"),
    "empty": Kind("audio without samples", "record the clip again, or remove the row"),
    "corrupt": Kind("corrupt, or not audio", "fetch or convert the file again"),
    "truncated": Kind("audio breaks off", "fetch the file again"),
    "nan": Kind("NaN or infinite samples", "export the clip again"),
    "crash": Kind("audio that crashes its decoder", "convert the file with another program"),
    "times": Kind("times that do not fit the file", "mend the row's times"),
    "long": Kind("too long", "cut the clip into pieces"),
    "no-text": Kind("empty text", "transcribe the clip, or remove the row"),
    "vocabulary": Kind("text outside the vocabulary", "spell it out, or add the letters to the vocabulary"),
    "tokens": Kind("text with too many tokens", "cut the clip into pieces"),
    "frames": Kind("text longer than its clip", "listen: is it another clip's text, or was the clip cut off?"),
    "no-words": Kind("no word left of the text", "transcribe the clip, or remove the row"),
    "short": _doubtful("very short", "listen: is the whole utterance there?"),
    "silent": _doubtful("silence", "record the clip again, or remove the row"),
    "quiet": _doubtful("very quiet", "listen; record at a higher level"),
    "near-empty": _doubtful("hardly any sound", "listen; the clip may have been cut in the wrong place"),
    "padding": _doubtful("long silence at an end", "trim it: it costs time and teaches nothing"),
    "clipped": _doubtful("clipped", "record at a lower level, or keep it if the channel sounds like this"),
    "dc": _doubtful("DC offset", "high-pass the clip; look at the recorder"),
    "odd-text": _doubtful("odd characters in the text", "clean the text: markup, control or broken characters"),
    "speed": _doubtful("text does not fit the duration", "listen: the transcript may belong to another clip"),
    "same-audio": _doubtful("same audio as another row", "keep one; where the texts differ, one of them is wrong"),
    "leak-audio": _doubtful("audio of another split", "keep it in one of them: a test must not hear what was learnt"),
    "leak-text": _doubtful("text of another split", "split by text, or mind it when you read figures"),
    "leak-speaker": _doubtful("speaker of another split", "split by speaker if new speakers are what you test for"),
}
"""Every kind of fault by name, the bad ones first."""


@dataclass(frozen=True)
class Finding:
    """One fault of one row.

    Args:
        kind: a key of `KINDS`.
        where: the row: ``train.jsonl row 12``.
        reason: what is wrong with it, with its values and the remedy.

    >>> Finding("missing", "train.jsonl row 3", "audio file a.wav does not exist").severity
    'bad'
    """

    kind: str
    where: str
    reason: str

    @property
    def severity(self) -> Severity:
        """How bad it is."""
        return KINDS[self.kind].severity

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}"


def finding_of(error: Exception, where: str) -> Finding:
    """The finding that an error about a row stands for; its message may begin with the row.

    >>> finding_of(ValueError("x.csv row 2: no audio"), "x.csv row 2").reason
    'no audio'
    """
    reason = str(error).removeprefix(f"{where}: ")
    return Finding(getattr(error, "kind", "row"), printable(where), printable(reason))


def by_kind(findings: Iterable[Finding]) -> list[tuple[str, int]]:
    """(kind, how many) in the order of `KINDS`, kinds that were not found left out."""
    counts = Counter(finding.kind for finding in findings)
    return [(kind, counts[kind]) for kind in KINDS if counts[kind]]


def summary(findings: Iterable[Finding]) -> str:
    """How many there are of each kind, in a line.

    >>> summary([Finding("nan", "x row 1", "NaN"), Finding("nan", "x row 2", "NaN")])
    '2 NaN or infinite samples'
    """
    return ", ".join(f"{count:,} {KINDS[kind].title}" for kind, count in by_kind(findings))


def listing(headline: str, problems: Sequence[str]) -> str:
    """The text of an error: a line, then the first problems, a line each, and how many more there are.

    >>> listing("2 bad rows", ["row 1: empty", "row 2: empty"]).count("\\n")
    2
    """
    rest = [f"… and {len(problems) - LISTED:,} more"] if len(problems) > LISTED else []
    return "\n  ".join([headline + ":", *problems[:LISTED], *rest])


def write_findings(path: Path, findings: Sequence[Finding]) -> None:
    """Write a table of tab-separated values (row, kind, reason), atomically; without findings, remove an old one.

    Raises:
        OSError: it could not be written.

    >>> write_findings(Path("runs/calls/bad_rows.tsv"), findings)  # doctest: +SKIP
    """
    if not findings:
        path.unlink(missing_ok=True)
        return
    lines = ("\t".join(map(_cell, (one.where, one.kind, one.reason))) for one in findings)
    write_text(path, "row\tkind\treason\n" + "".join(line + "\n" for line in lines))


def _cell(text: str) -> str:
    """Text in one cell of a table: no tabs, no line ends, nothing that UTF-8 cannot hold."""
    return printable(" ".join(text.split()))


def printable(text: str) -> str:
    """Text with what UTF-8 cannot hold written out: names of files may not be UTF-8.

    >>> printable("caf\\udce9.wav")
    'caf\\\\udce9.wav'
    """
    return text.encode(errors="backslashreplace").decode()
