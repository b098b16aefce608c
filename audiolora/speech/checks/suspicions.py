"""What is doubtful about speech data: rows that training takes and that somebody should listen to first.

Each rule takes rows (`CheckedRow`) and yields findings; the thresholds are in `Thresholds`.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from audiolora.speech.checks.clip_facts import SILENT_DBFS, ClipFacts
from audiolora.speech.data.findings import Finding
from audiolora.speech.data.split import fold_text
from audiolora.speech.data.utterance import Utterance

_MARKUP = re.compile(r"<[^<>]*>|\[[^\[\]]*\]|\{[^{}]*\}|https?://\S+|&\w+;")
_JOINERS = "\u200c\u200d"  # Persian and Indic scripts are written with them


@dataclass(frozen=True, slots=True)
class CheckedRow:
    """One utterance, the part of the data it is in, and what was measured of its clip."""

    part: str
    utterance: Utterance
    facts: ClipFacts


@dataclass(frozen=True)
class Thresholds:
    """From where on a row is doubtful.

    Args:
        min_duration_s: a shorter clip is very short.
        min_sound_s: less than this between the silence at its ends is hardly any sound.
        max_padding_s: more silence than this at an end is long.
        quiet_dbfs: a mean level below this is very quiet.
        clipped_share: a larger share of samples at full scale is clipping.
        dc_offset: a mean farther from 0 is an offset, full scale 1.
        speed_ratio, speed_deviations: a text is too long or too short for its clip where its characters a second lie
            this many times, and this many standard deviations, from the median of the rows of its language; deviations
            are estimated from the median absolute one, of the logarithm.
        speed_rows: of fewer rows there is no telling.
    """

    min_duration_s: float = 0.3
    min_sound_s: float = 0.1
    max_padding_s: float = 1.0
    quiet_dbfs: float = -45.0
    clipped_share: float = 1e-3
    dc_offset: float = 0.02
    speed_ratio: float = 2.5
    speed_deviations: float = 4.0
    speed_rows: int = 30


def suspicions(rows: Sequence[CheckedRow], thresholds: Thresholds) -> list[Finding]:
    """Every doubtful finding about rows that can be read, row by row."""
    found = [finding for row in rows for finding in (*_of_sound(row, thresholds), *_of_text(row))]
    return [*found, *_of_speed(rows, thresholds), *_same_audio(rows), *_leaks(rows)]


def _of_sound(row: CheckedRow, limits: Thresholds) -> Iterator[Finding]:
    facts, where = row.facts, row.utterance.where
    if facts.duration_s < limits.min_duration_s:
        yield Finding("short", where, f"{facts.duration_s:.2f} s, under {limits.min_duration_s:g} s")
    if facts.silent:
        yield Finding("silent", where, f"no 20 ms of its {facts.duration_s:.1f} s are louder than {SILENT_DBFS:g} dBFS")
        return
    if facts.sound_s < limits.min_sound_s <= facts.duration_s:
        yield Finding("near-empty", where, f"{facts.sound_s:.2f} s of sound in {facts.duration_s:.1f} s")
    if facts.level_dbfs < limits.quiet_dbfs:
        yield Finding("quiet", where, f"mean level {facts.level_dbfs:.0f} dBFS, under {limits.quiet_dbfs:g} dBFS")
    ends = (("begins", facts.leading_silence_s), ("ends", facts.trailing_silence_s))
    if long := [f"{how} with {length_s:.1f} s" for how, length_s in ends if length_s > limits.max_padding_s]:
        yield Finding("padding", where, f"{' and '.join(long)} of silence")
    if facts.clipped_share > limits.clipped_share:
        yield Finding("clipped", where, f"{100 * facts.clipped_share:.2f} % of its samples are at full scale")
    if abs(facts.dc_offset) > limits.dc_offset:
        yield Finding("dc", where, f"the mean of its samples is {facts.dc_offset:+.3f} of full scale")


def _of_text(row: CheckedRow) -> Iterator[Finding]:
    text, where = row.utterance.text, row.utterance.where
    if marked := _MARKUP.search(text):
        yield Finding("odd-text", where, f"markup {marked[0]!r} in the text {_short(text)}")
    odd = dict.fromkeys(
        letter
        for letter in text
        if letter == "\ufffd" or (unicodedata.category(letter)[0] == "C" and letter not in _JOINERS)
    )
    if odd:
        yield Finding("odd-text", where, f"{', '.join(map(ascii, odd))} in the text {_short(text)}")
    if not any(map(str.isalnum, text)):
        yield Finding("odd-text", where, f"neither a letter nor a digit in the text {_short(text)}")


def _of_speed(rows: Sequence[CheckedRow], limits: Thresholds) -> Iterator[Finding]:
    from scipy.stats import median_abs_deviation

    by_language: dict[str | None, list[tuple[CheckedRow, float]]] = defaultdict(list)
    for row in rows:
        letters = sum(not letter.isspace() for letter in fold_text(row.utterance.text))
        if letters and row.facts.sound_s > 0:
            by_language[row.utterance.language].append((row, math.log(letters / row.facts.sound_s)))
    for several in by_language.values():
        if len(several) < limits.speed_rows:
            continue
        speeds = [speed for _, speed in several]
        middle = sorted(speeds)[len(speeds) // 2]
        deviation = float(median_abs_deviation(speeds, scale="normal"))
        allowed = max(math.log(limits.speed_ratio), limits.speed_deviations * deviation)
        for row, speed in several:
            if abs(speed - middle) > allowed:
                reason = f"{math.exp(speed):.1f} characters a second, where {math.exp(middle):.1f} are usual: "
                yield Finding("speed", row.utterance.where, reason + _short(row.utterance.text))


def _same_audio(rows: Sequence[CheckedRow]) -> Iterator[Finding]:
    """Rows of one part whose samples are those of an earlier one."""
    for first, row in _repeated(rows, lambda row: (row.part, row.facts.digest)):
        same = fold_text(first.utterance.text) == fold_text(row.utterance.text)
        texts = "and the same text" if same else f"but {_short(row.utterance.text)}, not {_short(first.utterance.text)}"
        yield Finding("same-audio", row.utterance.where, f"the audio of {first.utterance.where} {texts}")


def _leaks(rows: Sequence[CheckedRow]) -> Iterator[Finding]:
    """What a part shares with an earlier one."""
    keys: dict[str, tuple[Callable[[CheckedRow], Hashable], str]] = {
        "leak-audio": (lambda row: row.facts.digest, "the audio of {where}"),
        "leak-text": (lambda row: fold_text(row.utterance.text), "the text of {where}: {text}"),
        "leak-speaker": (lambda row: row.utterance.speaker, "speaker {speaker!r} of {where}"),
    }
    for kind, (key, reason) in keys.items():
        told: set[tuple[str, Hashable]] = set()
        for first, row in _repeated(rows, key):
            once = (row.part, key(row))
            if row.part == first.part or (kind == "leak-speaker" and once in told):
                continue  # a speaker is told once a part, and not with each clip
            told.add(once)
            said = reason.format(
                where=_place(first),
                text=_short(row.utterance.text),
                speaker=row.utterance.speaker,
            )
            yield Finding(kind, row.utterance.where, said)


def _repeated(
    rows: Iterable[CheckedRow], key: Callable[[CheckedRow], Hashable]
) -> Iterator[tuple[CheckedRow, CheckedRow]]:
    """(the first row of its key, a later one); rows whose key is empty have none."""
    first: dict[Hashable, CheckedRow] = {}
    for row in rows:
        its = key(row)
        if its and first.setdefault(its, row) is not row:
            yield first[its], row


def _place(row: CheckedRow) -> str:
    """The row, and its part where it does not say so itself."""
    where = row.utterance.where
    return where if where.startswith(row.part) else f"{where} ({row.part})"


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:59] + "…")
