"""Stretches between timestamps, and pieces joined without losing or doubling a word."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audiolora.speech.texts.transcription import (
    Segment,
    Transcription,
    Word,
    heard_until,
    join_overlapping,
    split_at_timestamps,
)

ZERO = 1000  # the id of <|0.00|>


def at(time_s: float) -> int:
    return ZERO + round(time_s / 0.02)


@pytest.mark.parametrize(
    ("tokens", "wanted"),
    [
        ([], []),
        ([5, 6], [(10.0, 20.0, [5, 6])]),
        ([at(0), 5, at(2.5)], [(10.0, 12.5, [5])]),
        ([at(1), 5, at(2), at(2), 6, at(3)], [(11.0, 12.0, [5]), (12.0, 13.0, [6])]),
        ([at(1), 5, at(2), at(4), 6], [(11.0, 12.0, [5]), (14.0, 20.0, [6])]),
        ([at(1), 5, at(29)], [(11.0, 20.0, [5])]),  # later than the piece lasts
        ([at(0), at(1)], []),
    ],
)
def test_timestamps_set_stretches_apart(tokens: list[int], wanted: list[Any]) -> None:
    assert split_at_timestamps(tokens, ZERO, 10.0, 20.0) == wanted


@pytest.mark.parametrize(
    ("tokens", "count", "again_s"),
    [
        ([at(0), 5, at(2)], 3, None),  # closed: nothing follows
        ([at(0), 5, 6], 3, None),  # never closed, nothing to go back to
        ([at(0), 5, at(2), at(2)], 3, 2.0),  # closed and opened anew: more follows
        ([at(0), 5, at(2), at(2), 6], 3, 2.0),  # broken off
        ([at(0), 5, at(2), at(2), 6, at(3)], 6, None),
        ([at(0), at(0), 5], 3, None),  # from the begin again, for ever
    ],
)
def test_what_whisper_broke_off_is_heard_again(tokens: list[int], count: int, again_s: float | None) -> None:
    assert heard_until(tokens, ZERO) == (tokens[:count], again_s)


def said(text: str, start_s: float = 0.0, end_s: float = 10.0, language: str | None = "en") -> list[Segment]:
    return [Segment(start_s, end_s, text, language)]


@pytest.mark.parametrize(
    ("left", "right", "joined"),
    [
        ("one two three four", "three four five", "one two three four five"),
        ("one two three fo", "ree Three, four five", "one two three four five"),  # half words at both edges
        ("we say it again, it again", "it again and again", "we say it again, it again and again"),
        ("one two", "three four", "one two three four"),  # nothing in common: all is kept
        ("one two", "two", "one two"),
        ("", "one", "one"),
    ],
)
def test_overlapping_texts_are_written_once(left: str, right: str, joined: str) -> None:
    found = join_overlapping(said(left) if left else [], said(right, 8.0, 18.0), 9.0, 2.0)
    assert Transcription(18.0, tuple(found)).text == joined
    assert all(a.end_s <= b.start_s for a, b in pairwise(found)) or not left


@given(st.lists(st.integers(0, 10_000).map(str), min_size=3, max_size=60, unique=True), st.data())
def test_different_words_are_neither_lost_nor_doubled(words: list[str], data: st.DataObject) -> None:
    shared = data.draw(st.integers(1, min(12, len(words) - 1)))
    middle = data.draw(st.integers(shared, len(words)))
    found = join_overlapping(said(" ".join(words[:middle])), said(" ".join(words[middle - shared :])), 9.0, 2.0)
    assert Transcription(18.0, tuple(found)).text.split() == words


def test_words_with_times_are_divided_in_the_middle() -> None:
    def timed(text: str, *starts_s: float) -> list[Segment]:
        words = [Word(w, s, s + 0.4, 1.0) for w, s in zip(text.split(), starts_s, strict=True)]
        return [Segment(words[0].start_s, words[-1].end_s, text, "en", tuple(words))]

    left, right = timed("a b c d", 5.0, 8.0, 8.9, 9.4), timed("b c d e", 8.05, 8.9, 9.4, 11.0)
    found = join_overlapping(left, right, 9.0, 2.0)
    assert [segment.text for segment in found] == ["a b", "c d e"]
    assert (found[0].end_s, found[1].start_s) == (8.4, 8.9)


def test_languages_without_spaces_are_joined_by_characters() -> None:
    found = join_overlapping(said("今日は天気が", language="ja"), said("天気がいい", language="ja"), 9.0, 2.0)
    assert Transcription(18.0, tuple(found)).text == "今日は天気がいい"
