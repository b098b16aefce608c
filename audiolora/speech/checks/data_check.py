"""What would go wrong with speech data, found before anything is trained: `audiolora data check`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from audiolora.speech.checks.checking import Rules
from audiolora.speech.checks.clip_cache import ClipCache
from audiolora.speech.checks.measuring import measure_clips
from audiolora.speech.checks.model_limits import ModelLimits
from audiolora.speech.checks.suspicions import CheckedRow, Thresholds, suspicions
from audiolora.speech.data.findings import KINDS, Finding, by_kind
from audiolora.speech.data.manifests import Reading, read_all
from audiolora.speech.data.rows import DataError
from audiolora.speech.data.split import fold_text


@dataclass(frozen=True)
class DataCheck:
    """What was found.

    Args:
        parts: the parts of the data, such as manifests, in the order given.
        rows: every row whose clip can be read, the bad ones among them.
        findings: everything that is bad or doubtful, the bad first, by kind.
        n_rows: rows in all, those that cannot be read among them.
        limits: what they were checked against.
        letters_outside: (letter, how often) of what the model cannot write, the most frequent first.
    """

    parts: tuple[str, ...]
    rows: tuple[CheckedRow, ...]
    findings: tuple[Finding, ...]
    n_rows: int
    limits: ModelLimits
    letters_outside: tuple[tuple[str, int], ...] = ()

    @cached_property
    def bad(self) -> tuple[Finding, ...]:
        """What training refuses."""
        return tuple(finding for finding in self.findings if finding.severity == "bad")

    @property
    def n_bad_rows(self) -> int:
        """Rows that training refuses."""
        return len({finding.where for finding in self.bad})

    @property
    def hours(self) -> float:
        """Length of all clips that can be read."""
        return sum(row.facts.duration_s for row in self.rows) / 3600

    def part_table(self) -> list[tuple[str, int, float, int]]:
        """(part, clips that can be read, hours, speakers) of each part."""
        table = []
        for part in self.parts:
            rows = [row for row in self.rows if row.part == part]
            speakers = {row.utterance.speaker for row in rows} - {None}
            table.append((part, len(rows), sum(row.facts.duration_s for row in rows) / 3600, len(speakers)))
        return table

    def counts(self) -> dict[str, list[tuple[str, int]]]:
        """How many clips have each sample rate, number of channels, encoding, language and speaker, most first."""
        of = {
            "sample rate": lambda row: f"{row.facts.sample_rate_hz:,} Hz",
            "channels": lambda row: str(row.facts.channels),
            "encoding": lambda row: row.facts.encoding,
            "language": lambda row: row.utterance.language,
            "speaker": lambda row: row.utterance.speaker,
        }
        found = {name: Counter(map(value, self.rows)) for name, value in of.items()}
        named: dict[str, list[tuple[str, int]]] = {}
        for name, several in found.items():
            unnamed = several.pop(None, 0)
            if several:
                named[name] = [*several.most_common(), *([("not said", unnamed)] if unnamed else [])]
        return named

    def repeated_texts(self) -> int:
        """Rows whose text another row before them has, case and punctuation folded."""
        return len(self.rows) - len({fold_text(row.utterance.text) for row in self.rows})

    def as_json(self) -> dict[str, Any]:
        """Everything, for machines; every finding with its severity, row, reason and remedy."""
        return {
            "rows": self.n_rows,
            "bad_rows": self.n_bad_rows,
            "hours": self.hours,
            "checked_against": self.limits.called,
            "parts": [dict(zip(("part", "clips", "hours", "speakers"), row, strict=True)) for row in self.part_table()],
            "counts": {name: dict(several) for name, several in self.counts().items()},
            "repeated_texts": self.repeated_texts(),
            "letters_outside": dict(self.letters_outside),
            "kinds": [
                {"kind": kind, "severity": KINDS[kind].severity, "count": count, "title": KINDS[kind].title}
                for kind, count in by_kind(self.findings)
            ],
            "findings": [
                {
                    "severity": finding.severity,
                    "kind": finding.kind,
                    "row": finding.where,
                    "reason": finding.reason,
                    "remedy": KINDS[finding.kind].remedy,
                }
                for finding in self.findings
            ],
        }


def read_parts(
    data: Sequence[str | Path], *, audio_column: str = "audio", text_column: str = "text"
) -> dict[str, Reading]:
    """What was read of each manifest, by its name; files of the same name by their path.

    Raises:
        DataError: one given twice, nothing there, an unknown format, or a missing column.

    >>> list(read_parts(["train.jsonl", "test.jsonl"]))  # doctest: +SKIP
    ['train.jsonl', 'test.jsonl']
    """
    names = [str(one) for one in data]
    short = [Path(name).name for name in names]
    if len(set(names)) < len(names):
        raise DataError(f"{max(names, key=names.count)} is given twice; name each manifest once")
    called = short if len(set(short)) == len(short) else names
    return {
        name: read_all(one, audio_column=audio_column, text_column=text_column)
        for name, one in zip(called, data, strict=True)
    }


def check_data(
    parts: Mapping[str, Reading],
    limits: ModelLimits | None = None,
    *,
    thresholds: Thresholds | None = None,
    stretch: float = 1.0,
    workers: int | None = None,
    cache: ClipCache | None = None,
    progress: bool = True,
) -> DataCheck:
    """Read every clip and every text, and say what is bad and what is doubtful.

    Args:
        parts: what was read, by part; see `read_parts`. Where the data say themselves what is train, dev and test, a
            part is divided by that.
        limits: what the model takes; `ModelLimits()` by default.
        thresholds: from where on a row is doubtful.
        stretch: how many times as long a clip lasts after its channel, see `Channel.stretch`.
        workers, cache, progress: see `measure_clips`.

    Returns: what was found. A row is checked for doubts only if it is not bad.

    >>> check_data(read_parts(["train.jsonl"])).n_bad_rows  # doctest: +SKIP
    0
    """
    limits = limits or ModelLimits()
    rules = Rules(
        limits.max_duration_s,
        stretch,
        limits.encode,
        max_tokens=limits.max_tokens,
        normalize=limits.normalize,
        misfit=limits.misfit,
    )
    several = len(parts) > 1
    utterances = [
        (_part(name, one.part, several), replace(one, where=_where(name, one.where, several)))
        for name, reading in parts.items()
        for one in reading.utterances
    ]
    unread = [
        replace(one, where=_where(name, one.where, several))
        for name, reading in parts.items()
        for one in reading.bad_rows
    ]
    facts = measure_clips([one.audio for _, one in utterances], workers=workers, cache=cache, progress=progress)
    rows = [CheckedRow(part, one, its) for (part, one), its in zip(utterances, facts, strict=True)]
    faults = [rules.fault(row.utterance, row.facts) for row in rows]
    good = [row for row, fault in zip(rows, faults, strict=True) if fault is None]
    bad = [*unread, *(fault for fault in faults if fault is not None)]
    order = {kind: i for i, kind in enumerate(KINDS)}
    return DataCheck(
        parts=_parts(parts, several),
        rows=tuple(row for row in rows if row.facts.fault is None),
        findings=tuple(
            sorted([*bad, *suspicions(good, thresholds or Thresholds())], key=lambda finding: order[finding.kind])
        ),
        n_rows=len(utterances) + len(unread),
        limits=limits,
        letters_outside=tuple(limits.letters_outside(row.utterance.text for row in rows)),
    )


def _parts(data: Mapping[str, Reading], several: bool) -> tuple[str, ...]:
    """The parts in order, those among them of which no row can be read."""
    named = {
        name: dict.fromkeys(_part(name, one.part, several) for one in reading.utterances)
        for name, reading in data.items()
    }
    return tuple(part for name, its in named.items() for part in its or (name,))


def _part(name: str, said: str | None, several: bool) -> str:
    return name if said is None else f"{name}:{said}" if several else said


def _where(name: str, where: str, several: bool) -> str:
    """The row, led by its manifest's name where there are several and it does not say so itself."""
    if not several:
        return where
    path = Path(name)
    if not where.startswith(path.name):
        return f"{name}: {where}"
    return where if path.parent == Path() else f"{path.parent.as_posix()}/{where}"
