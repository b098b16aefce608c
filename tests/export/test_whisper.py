"""The two graphs of a Whisper in torch, against transformers' own forward, with and without adapters."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import audiolora
from audiolora.export.whisper import WhisperDecoder, WhisperEncoder, whisper_parts
from audiolora.speech.whisper.context import audio_context
from audiolora.speech.whisper.weights import load_whisper
from tests.export.networks import randomise
from tests.speech.tiny_whisper import tiny_whisper


@pytest.fixture(scope="module", params=["plain", "lora", "dora"])
def whisper(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("tiny")
    tiny_whisper(folder, layers=2)
    model: Any = load_whisper(folder).model
    if request.param != "plain":
        adapted = audiolora.adapt(model, request.param, r=2, targets=["conv", "attention"])
        torch.manual_seed(0)
        randomise(adapted)
        model = adapted.get_base_model()
    return model.double().eval()


@torch.no_grad()
@pytest.mark.parametrize(("batch", "frames"), [(1, 2), (3, 100), (2, 334)])
def test_the_encoder_gives_the_cross_attention_s_keys_and_values(whisper: Any, batch: int, frames: int) -> None:
    features = torch.randn(batch, 80, frames, dtype=torch.float64)
    with audio_context(whisper, frames):
        done = whisper(features, decoder_input_ids=torch.zeros(batch, 1, dtype=torch.long), use_cache=True)
    layers = done.past_key_values.cross_attention_cache.layers
    wanted = [tensor for layer in layers for tensor in (layer.keys, layer.values)]
    found = WhisperEncoder(whisper)(features)
    assert len(found) == len(wanted) == 4
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


@torch.no_grad()
@pytest.mark.parametrize("steps", [(5,), (1, 1, 1, 1, 1), (2, 1, 2), (3, 0, 2)])
def test_the_decoder_gives_the_logits_in_whatever_steps(whisper: Any, steps: tuple[int, ...]) -> None:
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, whisper.config.vocab_size, (3, 5), generator=draw)
    features = torch.randn(3, 80, 60, generator=draw, dtype=torch.float64)
    with audio_context(whisper, 60):
        done = whisper(features, decoder_input_ids=tokens, use_cache=True)
    heard, decoder = WhisperEncoder(whisper)(features), WhisperDecoder(whisper)
    cache = [keys[:, :, :0] for keys in heard]
    logits, begin = [], 0
    for count in steps:
        step, *cache = decoder(tokens[:, begin : begin + count], *heard, *cache)
        logits.append(step)
        begin += count
    torch.testing.assert_close(torch.cat(logits, 1), done.logits, rtol=0, atol=1e-9)
    layers = done.past_key_values.self_attention_cache.layers
    for ours, theirs in zip(cache, [part for layer in layers for part in (layer.keys, layer.values)], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


def test_the_parts_name_what_goes_from_the_encoder_to_the_decoder(whisper: Any) -> None:
    encoder, decoder = whisper_parts(whisper, torch.zeros(1, 80, 16, dtype=torch.float64))
    heard = [name for name in decoder.inputs if name != "tokens" and name not in decoder.states]
    assert tuple(heard) == encoder.outputs == ("heard_key_0", "heard_value_0", "heard_key_1", "heard_value_1")
    assert decoder.outputs == ("logits", *decoder.states.values())
    assert all(decoder.inputs[name].shape[2] == 2 for name in decoder.states)  # an example has a past
