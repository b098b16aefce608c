"""Word times: on attention drawn by hand, against librosa's warping, and on real speech with known boundaries."""

from __future__ import annotations

import logging
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import WhisperProcessor

from audiolora.speech.texts.recordings import recording_of
from audiolora.speech.whisper.decode import transcribe_recordings
from audiolora.speech.whisper.word_times import token_times, word_times
from tests.speech.whisper.test_decode import noise, processor, random_whisper

__all__ = ["processor"]


@given(st.lists(st.integers(8, 60), min_size=1, max_size=12), st.integers(1, 4), st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_tokens_begin_where_their_attention_does(lengths: list[int], heads: int, seed: int) -> None:
    edges = np.cumsum([0, *lengths])
    weights = np.full((heads, len(lengths), edges[-1]), 0.02)
    for row, (begin, end) in enumerate(pairwise(edges)):
        weights[:, row, begin:end] = 1.0
    weights += np.random.default_rng(seed).uniform(0, 0.01, weights.shape)
    if len(lengths) == 1:
        assert token_times(torch.tensor(weights)).tolist() == [0.0]
        return
    found = token_times(torch.tensor(weights))
    np.testing.assert_allclose(found, edges[:-1] * 0.02, atol=0.0401)  # a median over 7 positions moves an edge by 2


@pytest.mark.slow
def test_the_path_costs_no_more_than_librosas() -> None:
    from librosa.sequence import dtw
    from transformers.models.whisper.generation_whisper import _dynamic_time_warping

    steps: Any = np.array([[1, 1], [1, 0], [0, 1]])
    for seed in range(5):
        cost = np.random.default_rng(seed).standard_normal((9, 40))
        rows, columns = _dynamic_time_warping(cost)
        total = dtw(C=cost, step_sizes_sigma=steps, weights_add=np.zeros(3), weights_mul=np.ones(3), backtrack=False)
        assert cost[rows, columns].sum() == pytest.approx(total[-1, -1], abs=1e-5)


def test_words_are_the_text_and_their_times_rise(processor: WhisperProcessor, caplog: pytest.LogCaptureFixture) -> None:
    model = random_whisper(processor)
    before = model.config._attn_implementation
    recordings = [recording_of(noise(duration_s, 3), "x") for duration_s in (0.5, 1.3)]
    plain = transcribe_recordings(model, processor, recordings, progress=False)
    with caplog.at_level(logging.WARNING):
        timed = transcribe_recordings(model, processor, recordings, words=True, progress=False)
    assert "names no alignment_heads" in caplog.text and model.config._attn_implementation == before
    model.generation_config.alignment_heads = [[0, 1]]
    caplog.clear()
    assert transcribe_recordings(model, processor, recordings[:1], words=True, progress=False) and not caplog.text
    for one, without in zip(timed, plain, strict=True):
        assert one.text == without.text != ""
        words = [word for segment in one.segments for word in segment.words]
        times = [time for word in words for time in (word.start_s, word.end_s)]
        assert times == sorted(times) and 0 <= times[0] and times[-1] <= one.duration_s + 0.02
        assert all(0 <= word.probability <= 1 for word in words)


def test_a_text_that_fills_the_decoder_has_times_too(processor: WhisperProcessor) -> None:
    """What a looping multilingual model writes: four ids before the text, and no position left for its end."""
    model = random_whisper(processor, multilingual=True)
    config, tokenizer = model.generation_config, processor.tokenizer
    hidden = torch.randn(60, model.config.d_model, generator=torch.Generator().manual_seed(0))
    start = [config.decoder_start_token_id, config.lang_to_id["<|it|>"], config.task_to_id["transcribe"]]
    start.append(config.no_timestamps_token_id)
    room = model.config.max_target_positions - len(start)
    letters = tokenizer(" no" * room, add_special_tokens=False).input_ids
    for size in (room - 1, room):
        with torch.no_grad():
            [words] = word_times(model, tokenizer, hidden, start, [letters[:size]], 1.2, "it")
        assert "".join(word.text for word in words) == tokenizer.decode(letters[:size]).replace(" ", "")
        assert 0 <= words[0].start_s and words[-1].end_s <= 1.2


@pytest.mark.slow
@pytest.mark.parametrize("timestamps", [False, True])
def test_words_of_real_speech_lie_where_they_were_put(timestamps: bool) -> None:
    """Prompts laid one after another with 1 s of silence between: each one's words lie within its own clip."""
    from audiolora.speech.data.audio import read_audio
    from audiolora.speech.data.prompts import load_prompts
    from audiolora.speech.whisper.weights import load_whisper

    whisper = load_whisper("openai/whisper-tiny.en")
    rows = [row for row in load_prompts("en") if 4 <= len(row.text.split()) <= 9 and row.text.isascii()]
    chosen = [rows[index] for index in np.random.default_rng(5).permutation(len(rows))[:8]]
    audios = [read_audio(row.audio) for row in chosen]
    pause = np.zeros(16_000, np.float32)
    recording = recording_of(np.concatenate([part for audio in audios for part in (audio, pause)]), "x")
    how: Any = {"context": "full", "progress": False, "timestamps": timestamps}
    [found] = transcribe_recordings(whisper.model, whisper.processor, [recording], words=True, **how)
    words = [word for segment in found.segments for word in segment.words]
    ends = np.cumsum([len(audio) / 16_000 + 1 for audio in audios])
    starts = np.concatenate([[0], ends[:-1]])
    normalize, inside = whisper.processor.tokenizer.normalize, 0
    for row, start_s, end_s in zip(chosen, starts, ends - 1, strict=True):
        own = [w for w in words if start_s - 0.5 <= (w.start_s + w.end_s) / 2 <= end_s + 0.5]
        said, wanted = normalize(" ".join(w.text for w in own)).split(), normalize(row.text).split()
        inside += sum(word in said for word in wanted)
    assert inside >= 0.9 * sum(len(normalize(row.text).split()) for row in chosen)
