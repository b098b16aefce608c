"""The models of the table, run in other ways than one plain forward: streamed, generating, copied, in low precision."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig

import audiolora
from audiolora.layers.base import WeightSpaceLayer
from tests.models.test_transformers_models import adapted, factors, randomise
from tests.models.transformers_models import TABLE, RealModel, convolutions, noise

BY_NAME = {row.name: row for row in TABLE}


def trained(name: str, method: str = "lora") -> Any:
    """The transformers model inside, its convolutions adapted and the factors drawn."""
    return randomise(adapted(BY_NAME[name], method)).get_base_model()


@pytest.fixture(autouse=True)
def float64() -> Any:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@torch.no_grad()
def test_voxtral_in_chunks() -> None:
    """Its convolutions keep the end of each chunk in a cache, and read it by their own attributes."""
    embedder, frames = trained("Voxtral-realtime").embedder, noise(1, 8, 12)
    cache = transformers.models.voxtral_realtime.modeling_voxtral_realtime.VoxtralRealtimeConv1dPaddingCache()
    parts = [embedder(chunk, cache) for chunk in frames.split(4, dim=-1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), embedder(frames, None))
    assert embedder.conv1.left_pad == 2 and embedder.conv2.left_pad == 1


@torch.no_grad()
def test_mimi_in_chunks() -> None:
    encoder, audio = trained("Mimi").encoder, noise(1, 1, 64)
    cache, past, parts = None, None, []
    for chunk in audio.split(16, dim=-1):
        out = encoder(chunk, use_streaming=True, padding_cache=cache, past_key_values=past)
        cache, past = out.padding_cache, out.past_key_values
        parts.append(out.latents)
    torch.testing.assert_close(torch.cat(parts, dim=-1), encoder(audio).latents)


@torch.no_grad()
def test_lfm2_token_by_token() -> None:
    """A decoding step reads the weight once more, in another function."""
    model, ids = trained("LFM2"), torch.tensor([[3, 4, 5, 6]])
    whole = model(ids).last_hidden_state
    cache, steps = None, []
    for token in ids.split(1, dim=1):
        out = model(token, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        steps.append(out.last_hidden_state)
    torch.testing.assert_close(torch.cat(steps, dim=1), whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["Whisper", "wav2vec2", "DAC, weight norm", "VITS", "LFM2"])
def test_a_copy_is_another_model(name: str) -> None:
    row = BY_NAME[name]
    model = randomise(adapted(row, "dora"))
    with torch.no_grad():
        before = row.output(model)
        duplicate = copy.deepcopy(model)
        assert torch.equal(row.output(duplicate), before)
        for factor in factors(duplicate).values():
            factor.add_(1)
        duplicate.merge_and_unload()
        assert torch.equal(row.output(model), before)


LOW = [row for row in TABLE if row.name not in ("VITS", "FastSpeech2-conformer", "Autoformer", "Moonshine-streaming")]
"""Not those whose base fails with bfloat16 as the default type."""


@pytest.mark.slow
@pytest.mark.parametrize("row", LOW, ids=lambda row: row.name)
@pytest.mark.parametrize("autocast", [False, True], ids=["bfloat16", "autocast"])
def test_low_precision(row: RealModel, autocast: bool) -> None:
    row = dataclasses.replace(row, dtype=torch.float32 if autocast else torch.bfloat16)
    base, model = row.build(), adapted(row, "dora")
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        expected, actual = row.output(base), row.output(model)
    assert (actual - expected).abs().max() <= 0.1 * expected.abs().max()
    actual.float().sum().backward()
    used = [p for name, p in factors(model).items() if name.split(".lora_")[0] not in row.unused]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in used)


class TestTransformersOwnAdapters:
    """``model.add_adapter`` and ``from_pretrained`` of an adapter's folder: PEFT inside transformers, no PeftModel."""

    @pytest.mark.parametrize("name", ["Whisper", "HuBERT"])
    def test_add_save_and_load(self, name: str, tmp_path: Path) -> None:
        row = BY_NAME[name]
        row.build().save_pretrained(tmp_path / "base")
        cls = getattr(transformers, row.model)
        with audiolora.enabled():
            model = cls.from_pretrained(tmp_path / "base", dtype=row.dtype)
            model.add_adapter(LoraConfig(r=2, target_modules=convolutions(model)))
            randomise(model)
            model.save_pretrained(tmp_path / "adapter")
            loaded = cls.from_pretrained(tmp_path / "adapter", dtype=row.dtype)
        assert sum(isinstance(module, WeightSpaceLayer) for module in loaded.modules()) == sum(row.n_convs)
        with torch.no_grad():
            assert torch.equal(row.output(loaded.eval()), row.output(model.eval()))
