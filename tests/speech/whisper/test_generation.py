"""Beam search, fall-back, prompt and repetition against transformers' own Whisper `generate` and their definitions."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from audiolora.speech.texts.recordings import recording_of
from audiolora.speech.texts.transcription import Segment
from audiolora.speech.whisper.decode import transcribe, transcribe_recordings
from audiolora.speech.whisper.decoding import WhisperDecoding
from audiolora.speech.whisper.features import log_mel
from audiolora.speech.whisper.generation import _Draw, compression_ratio, encode, generate
from tests.speech.whisper.test_decode import noise, processor, random_whisper

__all__ = ["processor"]

SHORT = [noise(duration_s, seed) for seed, duration_s in enumerate([0.5, 0.9, 0.7])]


@pytest.fixture(scope="module")
def model(processor: WhisperProcessor) -> WhisperForConditionalGeneration:
    return random_whisper(processor)


def theirs(
    model: WhisperForConditionalGeneration, processor: WhisperProcessor, n_tokens: int, **options: Any
) -> list[str]:
    """transformers' own `generate`, a clip at a time, at 30 s of context."""
    texts = []
    for audio in SHORT:
        with torch.no_grad():
            ids = model.generate(log_mel(processor, audio)[None], max_new_tokens=n_tokens, **options)
        texts.append(processor.batch_decode(ids, skip_special_tokens=True)[0])
    return texts


@pytest.mark.parametrize(
    ("ours", "options"),
    [
        (WhisperDecoding(beams=3), {"num_beams": 3}),
        (WhisperDecoding(prompt="abc de"), {"prompt": "abc de"}),
        (WhisperDecoding(no_repeat_ngram=2), {"no_repeat_ngram_size": 2}),
    ],
    ids=["beams", "prompt", "ngram"],
)
def test_it_is_transformers_own_generate(
    model: WhisperForConditionalGeneration, processor: WhisperProcessor, ours: WhisperDecoding, options: dict[str, Any]
) -> None:
    if "prompt" in options:
        options = {"prompt_ids": processor.get_prompt_ids(options["prompt"], return_tensors="pt")}
    wanted = theirs(model, processor, 12, **options)
    if "prompt_ids" in options:
        wanted = [text.removeprefix("abc de").strip() for text in wanted]
    how: dict[str, Any] = {"context": "full", "max_new_tokens": 12, "progress": False}
    plain = transcribe(model, processor, SHORT, **how)
    assert transcribe(model, processor, SHORT, decoding=ours, **how) == wanted != plain
    assert transcribe(model, processor, SHORT, decoding=ours, batch_size=1, **how) == wanted


def logits_of(model: WhisperForConditionalGeneration, hidden: torch.Tensor, ids: list[int]) -> torch.Tensor:
    """Log-probabilities (n, vocabulary) after each id, suppressed tokens out."""
    logits = model(encoder_outputs=(hidden,), decoder_input_ids=torch.tensor([ids])).logits[0]
    logits[:, model.generation_config.suppress_tokens] = -torch.inf
    logits[0, model.generation_config.begin_suppress_tokens] = -torch.inf
    return logits.log_softmax(-1)


@pytest.mark.parametrize("beams", [1, 2])
@torch.no_grad()
def test_figures_of_the_fall_back_are_their_definitions(
    model: WhisperForConditionalGeneration, processor: WhisperProcessor, beams: int
) -> None:
    features = torch.stack([log_mel(processor, audio) for audio in SHORT])
    hidden, config = encode(model, features), model.generation_config
    start = [config.decoder_start_token_id, config.no_timestamps_token_id]
    budgets = [5, 40, 9]  # those that are cut short have no end among their tokens
    how = WhisperDecoding(beams=beams, fallback=True, temperatures=(0.0,), log_probability=-99.0)
    found = generate(model, processor.tokenizer, hidden, [start] * 3, budgets, [0, 1, 2], how)
    assert any(len(one.tokens) == budget for one, budget in zip(found, budgets, strict=True))
    for row, (one, budget) in enumerate(zip(found, budgets, strict=True)):
        tokens = [*one.tokens, config.eos_token_id][:budget]
        chances = logits_of(model, hidden[row : row + 1], [*start, *tokens])[1:-1]
        chances[0, config.begin_suppress_tokens] = -torch.inf
        first = model(encoder_outputs=(hidden[row : row + 1],), decoder_input_ids=torch.tensor([start[:1]])).logits
        total = sum(float(chances[i].log_softmax(-1)[token]) for i, token in enumerate(tokens))
        if beams == 1:
            assert one.log_probability == pytest.approx(total / (len(one.tokens) + 1), abs=1e-4)
        no_speech = first[0, 0].softmax(-1)[config.no_timestamps_token_id - 1]
        assert one.no_speech == pytest.approx(float(no_speech), rel=1e-4)
        assert one.compression_ratio == compression_ratio(processor.tokenizer.decode(one.tokens))


def segment(model: WhisperForConditionalGeneration, processor: WhisperProcessor, **options: Any) -> list[list[Segment]]:
    decoding = WhisperDecoding(**{"fallback": True, "temperatures": (0.0, 1.0), **options})
    recordings = [recording_of(audio, "x") for audio in SHORT]
    found = transcribe_recordings(model, processor, recordings, decoding=decoding, progress=False)
    return [list(one.segments) for one in found]


def test_what_fails_is_decoded_hotter_until_it_passes(
    model: WhisperForConditionalGeneration, processor: WhisperProcessor
) -> None:
    lenient = segment(model, processor, log_probability=-99.0, compression_ratio=99.0, no_speech=1.0)
    assert [[s.temperature for s in row] for row in lenient] == [[0.0]] * 3
    strict = segment(model, processor, compression_ratio=1e-6, no_speech=1.0)  # nothing passes
    assert [[s.temperature for s in row] for row in strict] == [[1.0]] * 3
    assert [row[0].text for row in strict] != [row[0].text for row in lenient]
    ratios = sorted(row[0].compression_ratio or 0 for row in lenient)
    some = segment(model, processor, log_probability=-99.0, compression_ratio=(ratios[0] + ratios[-1]) / 2, no_speech=1)
    for one, before in zip(some, lenient, strict=True):
        passed = (before[0].compression_ratio or 0) <= (ratios[0] + ratios[-1]) / 2
        assert (one[0] == before[0]) == passed, "what passes is left as it was"
    assert segment(model, processor, log_probability=-1e-9, no_speech=0.0) == [[], [], []], "no speech has no text"


def test_draws_do_not_depend_on_the_batch_or_the_order(
    model: WhisperForConditionalGeneration, processor: WhisperProcessor
) -> None:
    options: dict[str, Any] = {"fallback": True, "temperatures": (0.7,), "no_speech": 1.0}
    how: dict[str, Any] = {"decoding": WhisperDecoding(**options), "progress": False}
    texts = transcribe(model, processor, SHORT, **how)
    assert transcribe(model, processor, SHORT[::-1], batch_size=2, **how) == texts[::-1]
    assert [transcribe(model, processor, [audio], **how)[0] for audio in SHORT] == texts
    assert transcribe(model, processor, SHORT, decoding=WhisperDecoding(**options, seed=1), progress=False) != texts


def test_draws_follow_the_softmax_at_their_temperature() -> None:
    scores = torch.tensor([[1.0, 0.0, -torch.inf, 2.0]])
    draw = _Draw(0.5, [torch.Generator().manual_seed(0)])
    counts = torch.bincount(torch.stack([draw(scores, scores).argmax() for _ in range(4000)]), minlength=4)
    wanted = 4000 * (scores[0] / 0.5).softmax(-1)
    spread = 4 * (wanted * (1 - wanted / 4000)).sqrt()
    assert ((counts - wanted).abs() <= spread).all() and counts[2] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beams": 0}, "beams must be at least 1, got 0"),
        ({"prompt": "  "}, "prompt is empty"),
        ({"no_repeat_ngram": -1}, "must not be negative, got -1"),
        ({"repetition_penalty": 0.9}, "at least 1, got 0.9"),
        ({"repetition_penalty": math.nan}, "at least 1, got nan"),
        ({"seed": 2**32}, r"seed must be in \[0, 2\*\*32\)"),
        ({"temperatures": (0.2, 0.1), "fallback": True}, "temperatures must rise"),
        ({"temperatures": (), "fallback": True}, "temperatures must rise"),
        ({"compression_ratio": 0.0, "fallback": True}, "positive, got 0"),
        ({"log_probability": 0.1, "fallback": True}, "must not be positive, got 0.1"),
        ({"no_speech": 1.1, "fallback": True}, r"probability in \[0, 1\], got 1.1"),
        ({"beams": 5, "temperatures": (0.2, 0.4), "fallback": True}, "beams=5 does nothing.*begin at 0.2"),
        ({"no_speech": 0.5, "seed": 3}, "no_speech, seed without fallback does nothing"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WhisperDecoding(**options)
