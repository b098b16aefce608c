"""Each rule finds what it is for, says its figure, and leaves ordinary rows alone."""

from dataclasses import replace

import numpy as np
import pytest

from audiolora.speech.checks.clip_facts import ClipFacts
from audiolora.speech.checks.suspicions import CheckedRow, Thresholds, suspicions
from audiolora.speech.data.utterance import Utterance

GOOD = ClipFacts(
    duration_s=2.0, sample_rate_hz=8000, channels=1, encoding="WAV PCM_16", peak=0.5, level_dbfs=-20.0, digest="0"
)


def row(n: int, text: str = "", part: str = "train", speaker: str | None = None, **facts) -> CheckedRow:
    text = text or f"sentence number {n}"
    utterance = Utterance(str(n), b"RIFF", text, f"{part} row {n}", speaker)
    return CheckedRow(part, utterance, replace(GOOD, **{"digest": str(n), **facts}))


def found(*rows: CheckedRow) -> list[tuple[str, str]]:
    return [(finding.kind, finding.where) for finding in suspicions(rows, Thresholds())]


def test_ordinary_rows_are_left_alone():
    assert found(*(row(n) for n in range(50))) == []
    assert found(row(1, "را می‌خواهم"), row(2, "don't, co-operate: 50 % (yes)!"), row(3, "é\u0301 ﬁ")) == []


@pytest.mark.parametrize(
    ("facts", "kind", "figure"),
    [
        ({"duration_s": 0.25}, "short", "0.25 s"),
        ({"silent": True, "leading_silence_s": 2.0}, "silent", "2.0 s"),
        ({"leading_silence_s": 0.97, "trailing_silence_s": 0.97}, "near-empty", "0.06 s of sound in 2.0 s"),
        ({"level_dbfs": -52.0}, "quiet", "-52 dBFS"),
        ({"leading_silence_s": 1.2}, "padding", "begins with 1.2 s of silence"),
        ({"duration_s": 9.0, "leading_silence_s": 2, "trailing_silence_s": 3}, "padding", "2.0 s and ends with 3.0 s"),
        ({"clipped_share": 0.0125}, "clipped", "1.25 %"),
        ({"dc_offset": -0.05}, "dc", "-0.050"),
    ],
)
def test_sound(facts, kind, figure):
    [finding] = suspicions([row(1), row(2, **facts)], Thresholds())
    assert (finding.kind, finding.where, finding.severity) == (kind, "train row 2", "doubtful")
    assert figure in finding.reason


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("hello <noise> there", "'<noise>'"),
        ("[laughter] yes", "'[laughter]'"),
        ("see https://example.org now", "https://example.org"),
        ("fish &amp; chips", "'&amp;'"),
        ("na\ufffdve", "'\\ufffd'"),
        ("a\u200bb", "'\\u200b'"),
        ("a\x07b", "'\\x07'"),
        ("...", "neither a letter nor a digit"),
    ],
)
def test_odd_texts(text, told):
    [finding] = suspicions([row(1), row(2, text)], Thresholds())
    assert finding.kind == "odd-text" and finding.where == "train row 2" and told in finding.reason


def test_texts_that_do_not_fit_their_clips():
    """Speeds are log-normal around 15 characters a second; two rows lie far outside on either side."""
    rng = np.random.default_rng(0)
    speeds = 15 * np.exp(0.15 * rng.standard_normal(200))
    speeds[50], speeds[150] = 90, 2
    rows = [row(n, "a" * round(2 * speed)) for n, speed in enumerate(speeds)]
    assert found(*rows) == [("speed", "train row 50"), ("speed", "train row 150")] or len(
        {one.utterance.text for one in rows}
    ) < len(rows)
    told = [one for one in suspicions(rows, Thresholds()) if one.kind == "speed"]
    assert [one.where for one in told] == ["train row 50", "train row 150"]
    assert "90.0 characters a second, where 15" in told[0].reason
    slow = [replace(one, utterance=replace(one.utterance, language="zh")) for one in rows[50:51]]
    assert [one for one in suspicions([*rows[:50], *slow], Thresholds()) if one.kind == "speed"] == []


def test_silence_at_the_ends_does_not_count_as_speech():
    rows = [row(n, "a" * 30) for n in range(40)]
    rows[7] = row(7, "a" * 30, duration_s=6.0, leading_silence_s=0.9, trailing_silence_s=0.9)
    assert [kind for kind, _ in found(*rows)] == []
    rows[7] = row(7, "a" * 30, duration_s=9.0)
    assert found(*rows) == [("speed", "train row 7")]


def test_the_same_audio_twice():
    rows = [row(1), row(2), row(3, digest="1"), row(4, "Sentence, number 1!", digest="1")]
    other, same = suspicions(rows, Thresholds())
    assert other.where == "train row 3" and "the audio of train row 1 but 'sentence number 3'" in other.reason
    assert same.where == "train row 4" and same.reason == "the audio of train row 1 and the same text"


def test_what_the_test_part_shares_with_the_training_part():
    train = [row(n, speaker="anna" if n % 2 else "ben") for n in range(4)]
    test = [
        row(10, "Sentence number... 2", part="test", speaker="cleo"),
        row(11, part="test", speaker="ben"),
        row(12, part="test", speaker="ben"),
        row(13, part="test", digest="3"),
        row(14, part="test"),
    ]
    findings = suspicions([*train, *test], Thresholds())
    assert [(one.kind, one.where) for one in findings] == [
        ("leak-audio", "test row 13"),
        ("leak-text", "test row 10"),
        ("leak-speaker", "test row 11"),
    ]
    assert findings[1].reason == "the text of train row 2: 'Sentence number... 2'"
    assert findings[2].reason == "speaker 'ben' of train row 0"
