"""Greedy decoding on the device: prompts, suppression, ends; what is refused. A table stands in for the decoder."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from audiolora.edge.whisper import Assets, greedy, transcribe_with
from audiolora.export.errors import BundleError
from audiolora.export.tensors import write_tensors
from audiolora.export.whisper_settings import FILTERS_FILE, VOCABULARY_FILE
from tests.export.test_whisper_settings import SETTINGS

A, B, END = 1, 2, SETTINGS.end
ITALIAN = replace(SETTINGS, language="it")


class Table:
    """A decoder whose scores are written down, one entry a call; it keeps what it was given."""

    def __init__(self, *scores: Mapping[int, float] | list[Mapping[int, float]]) -> None:
        self.scores = list(scores)
        self.tokens: list[Any] = []
        self.began: list[bool] = []

    def __call__(self, tokens: np.ndarray, cache: Any) -> tuple[np.ndarray, Any]:
        assert tokens.dtype == np.int64
        self.tokens.append(tokens.tolist())
        self.began.append(cache is None)
        now = self.scores.pop(0)
        logits = np.full((*tokens.shape, 20), 99.0, np.float32)
        logits[:, -1] = -5  # the last step's are the ones that count
        for row, scores in enumerate(now if isinstance(now, list) else [now] * len(tokens)):
            logits[row, -1, list(scores)] = list(scores.values())
        return logits, {"past": tokens}


def test_the_likeliest_token_is_taken_until_the_end() -> None:
    step = Table({A: 1, B: 2}, {A: 3, B: 2}, {END: 1})
    assert greedy(ITALIAN, [10], step) == [[B, A]]
    assert step.tokens == [[[10, 12, 13, 14]], [[B]], [[A]]] and step.began == [True, False, False]


def test_the_prompt_of_an_english_model_has_no_language() -> None:
    step = Table({A: 1}, {END: 1})
    assert greedy(replace(SETTINGS, languages={}, after=(14,)), [10], step) == [[A]]
    assert step.tokens[0] == [[10, 14]]


def test_suppressed_tokens_are_never_written_and_some_not_first() -> None:
    step = Table({0: 9, END: 8, A: 1}, {0: 9, 10: 9, B: 2}, {0: 9, END: 8})
    assert greedy(ITALIAN, [10], step) == [[A, B]]


def test_rows_end_by_themselves_and_at_their_own_limits() -> None:
    step = Table({A: 1}, [{END: 1}, {B: 1}, {A: 1}], [{B: 1}, {A: 1}, {A: 1}], [{B: 1}, {A: 1}, {END: 1}])
    assert greedy(ITALIAN, [9, 2, 9], step) == [[A], [A, B], [A, A, A]]
    assert greedy(ITALIAN, [1], Table({A: 1})) == [[A]]  # no step beyond the limit


def test_a_language_is_detected_row_by_row() -> None:
    step = Table([{11: 1, 12: 2, A: 9}, {11: 3, 12: 2, A: 9}], {A: 1}, {END: 1})
    assert greedy(SETTINGS, [5, 5], step) == [[A], [A]]
    assert step.tokens[:2] == [[[10], [10]], [[10, 12, 13, 14], [10, 11, 13, 14]]]
    assert step.began == [True, True, False]


def assets(**files: bytes) -> Assets:
    filters = {"filters": np.ones((201, 80), np.float32), "window": np.ones(400, np.float32)}
    vocabulary = ["", "a", " caf\xc3", "\xa9", *[""] * 6]  # é is cut in two
    made = {FILTERS_FILE: write_tensors(filters), VOCABULARY_FILE: json.dumps(vocabulary).encode()}
    return Assets.read(made | files, SETTINGS)


def test_bytes_become_text_only_where_all_of_them_are_there() -> None:
    found = assets()
    assert found.text([2, 3, 1, END, 15]) == "caféa"  # 15 is beyond the vocabulary
    assert found.text([2, 1]) == "caf\N{REPLACEMENT CHARACTER}a" and found.text([]) == ""


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        (VOCABULARY_FILE, b'["\\u0101"]', "vocabulary.json: .*latin-1"),
        (VOCABULARY_FILE, b'{"a": 1}', "no list of strings"),
        (VOCABULARY_FILE, b'["a", 1]', "no list of strings"),
        (VOCABULARY_FILE, b"\xff", "vocabulary.json: "),
        (VOCABULARY_FILE, b"[" * 100_000, "vocabulary.json: "),
        (FILTERS_FILE, write_tensors({"filters": np.ones((201, 80), np.float32)}), "are needed"),
        (FILTERS_FILE, b"", "mel.safetensors"),
    ],
)
def test_files_that_are_something_else_are_refused(name: str, data: bytes, message: str) -> None:
    with pytest.raises(BundleError, match=message):
        assets(**{name: data})


def test_a_missing_file_is_refused() -> None:
    with pytest.raises(BundleError, match=r"base/mel\.safetensors: missing"):
        Assets.read({}, SETTINGS)


def test_clips_of_one_context_run_together_and_come_back_in_order() -> None:
    seen: list[tuple[int, ...]] = []

    def encode(features: np.ndarray) -> dict[str, np.ndarray]:
        seen.append(features.shape)
        return {"heard": features}

    def step(tokens: np.ndarray, heard: Any, cache: Any) -> tuple[np.ndarray, Any]:
        logits = np.zeros((*tokens.shape, 20), np.float32)
        frames = heard["heard"].shape[2]
        logits[:, -1, {100: A, 150: 2, 300: 3}[frames] if cache is None else END] = 1
        return logits, {"past": tokens}

    clips = [np.full(n, 0.1, np.float32) for n in (16_000, 48_000, 20_000, 3, 16_001)]
    texts = transcribe_with(ITALIAN, assets(), clips, 16_000, encode, step, batch_size=2)
    cut = "\N{REPLACEMENT CHARACTER}"
    assert texts == ["a", cut, f"caf{cut}", "a", f"caf{cut}"]
    assert seen == [(1, 80, 300), (2, 80, 150), (2, 80, 100)]  # the longest first
    assert transcribe_with(ITALIAN, assets(), [], 16_000, encode, step) == []


@pytest.mark.parametrize(
    ("audio", "rate_hz", "message"),
    [
        (np.zeros(9, np.float32), 44_100, r"must be 16000, .* got 44100; .*soxr\.resample\(audio, 44100, 16000\)"),
        (np.zeros((2, 9), np.float32), 16_000, r"clip 0 must be mono .* got shape \(2, 9\)"),
        (np.zeros(0, np.float32), 16_000, "at least one sample"),
        (np.zeros(9, np.int16), 16_000, "clip 0 must be float, full scale at 1, got int16; divide int16 by 32768"),
        (np.array([0, np.nan]), 16_000, "clip 0 holds NaN or infinite"),
        (np.zeros(480_001, np.float32), 16_000, r"clip 0 lasts 30\.00 s, and .* at most 30 s at once: cut it"),
    ],
)
def test_audio_that_cannot_be_heard_is_refused(audio: np.ndarray, rate_hz: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        transcribe_with(ITALIAN, assets(), [audio], rate_hz, dict, dict)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        transcribe_with(ITALIAN, assets(), [], 16_000, dict, dict, batch_size=0)  # type: ignore[arg-type]


@given(st.lists(st.binary(max_size=4), max_size=8))
def test_any_bytes_have_a_text(pieces: list[bytes]) -> None:
    found = Assets(np.zeros(0), np.zeros(0), pieces).text(range(len(pieces)))
    assert found == re.sub(r"<\|\d+\.\d+\|>", "", b"".join(pieces).decode("utf-8", "replace")).strip()
