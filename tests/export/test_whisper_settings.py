"""What a device is told of a Whisper: strict, and the same rules as with torch."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audiolora.export.tasks import check_adapter_task, task_from_json, task_to_json
from audiolora.export.whisper_settings import WhisperSettings, check_same_model
from audiolora.speech.whisper.context import ContextPolicy
from audiolora.speech.whisper.pieces import TOKENS_AT_LEAST, TOKENS_PER_S

SETTINGS = WhisperSettings(
    sample_rate_hz=16_000,
    n_fft=400,
    hop=160,
    n_mels=80,
    max_frames=3000,
    context="auto",
    multiple_frames=50,
    floor_frames=100,
    start=10,
    languages={"en": 11, "it": 12},
    language=None,
    after=(13, 14),
    end=9,
    suppressed=(0, 10),
    begin_suppressed=(9,),
    max_tokens=444,
    tokens_per_s=TOKENS_PER_S,
    tokens_at_least=TOKENS_AT_LEAST,
)


@given(st.integers(1, 480_000))
def test_the_context_is_that_of_torch(n_samples: int) -> None:
    assert SETTINGS.n_frames(n_samples) == ContextPolicy("auto").n_frames([n_samples / 16_000])
    assert replace(SETTINGS, context="full").n_frames(n_samples) == 3000


def test_a_clip_of_more_than_30_s_has_no_context() -> None:
    assert SETTINGS.n_frames(480_000) == 3000
    with pytest.raises(ValueError, match=r"30\.00 s, and this model hears at most 30 s"):
        SETTINGS.n_frames(480_001)


def test_json_gives_back_what_it_took() -> None:
    says = json.loads(json.dumps(task_to_json(SETTINGS)))
    assert says["kind"] == "whisper" and task_from_json(says) == SETTINGS
    with pytest.raises(TypeError, match="beam"):
        task_from_json({**says, "beam": 5})
    del says["end"]
    with pytest.raises(TypeError, match="end"):
        task_from_json(says)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("hop", 0, "hop must be positive, got 0"),
        ("n_fft", 401, "n_fft must be even"),
        ("n_mels", 80.0, "n_mels must be positive, got 80.0"),
        ("context", "mix", "context must be one of auto, full, got 'mix'"),
        ("end", -1, "end must be a token"),
        ("suppressed", (1, "2"), "suppressed must be tokens"),
        ("suppressed", "12", "a list is needed, got '12'"),
        ("languages", ["en"], "languages must be tokens by code"),
        ("languages", {"en": True}, "languages must be tokens by code"),
        ("language", "de", "language must be one it knows: en, it, got 'de'"),
        ("floor_frames", 4000, "at most 3000, got 4000"),
    ],
)
def test_what_is_out_of_its_range_is_refused_by_name(name: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        task_from_json({**(task_to_json(SETTINGS) or {}), name: value})


def test_an_english_model_is_told_no_language() -> None:
    english = replace(SETTINGS, languages={}, after=(14,))
    with pytest.raises(ValueError, match="give language=None, got 'en'"):
        replace(english, language="en")


def test_an_adapter_has_its_own_context_and_language_and_nothing_else() -> None:
    check_same_model(SETTINGS, replace(SETTINGS, context="full", language="it", after=(15, 14)))
    with pytest.raises(ValueError, match="but for context, language and task, got 'hop, end'"):
        check_adapter_task(SETTINGS, replace(SETTINGS, hop=80, end=3))
    with pytest.raises(ValueError, match="an adapter's task must be of its base's kind, none, got 'whisper'"):
        check_adapter_task(None, SETTINGS)
