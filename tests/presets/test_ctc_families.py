"""Every CTC family: adapters in each group inject, learn, merge into the family's own model, and load again.

The reference is the adapted model's own forward, and what transformers and PEFT alone load from disk.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import nn

import audiolora
from audiolora.presets import preset_for, resolve_targets
from tests.speech.ctc.saved_models import ATTENTION_REFUSED, FAMILIES, sound, tiny_ctc

CONVOLUTIONS = {
    "Data2VecAudioForCTC": 4 + 3,
    "Wav2Vec2ConformerForCTC": 4 + 2 * 3,  # and not the positional one, which never runs
    "Wav2Vec2BertForCTC": 2 * 3,
    "ParakeetForCTC": 2 * 3,
}
LINEARS = {"ParakeetForCTC": 2 * 4, "Wav2Vec2ConformerForCTC": 2 * 4, "Wav2Vec2BertForCTC": 2 * 4}
GROUPS = {name: ["conv", "ffn"] if name in ATTENTION_REFUSED else ["conv", "attention", "ffn"] for name in FAMILIES}

NEW = ("SEWDForCTC", "Wav2Vec2ConformerForCTC", "Wav2Vec2BertForCTC", "ParakeetForCTC")


def logits(model: Any) -> torch.Tensor:
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    return model(**sound(base)).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_what_the_groups_mean(family: str) -> None:
    model = tiny_ctc(family)
    found = resolve_targets(model, GROUPS[family], preset_for(model))
    kinds = {group: {type(model.get_submodule(name)) for name in names} for group, names in found.items()}
    assert all(issubclass(kind, nn.Conv1d) for kind in kinds.pop("conv"))
    assert all(kind is nn.Linear for each in kinds.values() for kind in each)
    assert len(found["conv"]) == CONVOLUTIONS.get(family, 4 + 1)
    assert len(found["ffn"]) == LINEARS.get(family, 2 * 2)
    assert len(found.get("attention", [None] * 4)) == 2 * 2
    head = [name for names in found.values() for name in names if "head" in name or "project" in name]
    assert head == []


@pytest.mark.parametrize(
    "family, method",
    # The other families' LoRA is in test_presets; with a head it is slow for nothing new.
    [(family, "lora") for family in NEW]
    + [pytest.param(family, "lora", marks=pytest.mark.slow) for family in FAMILIES if family not in NEW]
    + [pytest.param(family, "dora", marks=pytest.mark.slow) for family in FAMILIES],
)
def test_adapt_learn_save_load_and_merge(family: str, method: str, tmp_path: Path) -> None:
    plain = tiny_ctc(family)
    keys, before = list(plain.state_dict()), logits(plain).detach()
    model = audiolora.adapt(plain, method, r=2, targets=GROUPS[family]).eval()
    torch.testing.assert_close(logits(model), before, rtol=1e-4, atol=1e-5)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=2e-2)
    for _ in range(2):  # at the first step only B has a gradient: B starts at zero
        optimizer.zero_grad()
        logits(model).square().mean().backward()
        optimizer.step()
    still = [name for name, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert still == []
    after = logits(model).detach()
    assert (after - before).abs().max() > 1e-3

    model.save_pretrained(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(tiny_ctc(family), tmp_path / "adapter").eval()
    torch.testing.assert_close(logits(loaded), after, rtol=1e-4, atol=1e-5)

    merged = model.merge_and_unload(safe_merge=True)
    assert list(merged.state_dict()) == keys
    torch.testing.assert_close(logits(merged), after, rtol=1e-4, atol=1e-5)
    merged.save_pretrained(tmp_path / "merged")
    audiolora.disable()
    alone = type(merged).from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(logits(alone), after, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("targets", ["pos_conv_embed.conv", ["conv", "pos_conv_embed.conv"]], ids=str)
def test_conformer_s_positional_convolution_is_refused(targets: Any) -> None:
    with pytest.raises(ValueError, match="on wav2vec2-Conformer: pos_conv_embed.conv: transformers makes this"):
        audiolora.adapt(tiny_ctc("Wav2Vec2ConformerForCTC"), r=2, targets=targets)


def test_because_it_never_runs() -> None:
    model = tiny_ctc("Wav2Vec2ConformerForCTC")
    before = logits(model)
    with torch.no_grad():
        model.wav2vec2_conformer.encoder.pos_conv_embed.conv.bias.fill_(1e3)
    assert torch.equal(logits(model), before)


def test_what_is_in_no_group_may_be_named() -> None:
    model = audiolora.adapt(tiny_ctc("SEWDForCTC"), r=2, targets=["attention.output.dense"])
    names = [name for name, p in model.named_parameters() if p.requires_grad and "lora_A" in name]
    assert len(names) == 2 and all("attention.output.dense" in name for name in names)


def test_parakeet_s_subsampling_is_left_to_peft() -> None:
    model = tiny_ctc("ParakeetForCTC")
    before = logits(model)
    adapted = audiolora.adapt(model, r=2, targets=["subsampling.layers.0"]).eval()
    (layer,) = [m for m in adapted.modules() if hasattr(m, "lora_A") and isinstance(m.get_base_layer(), nn.Conv2d)]
    with torch.no_grad():
        layer.lora_B["default"].weight.normal_()
    after = logits(adapted)
    assert (after - before).abs().max() > 1e-3
    torch.testing.assert_close(logits(adapted.merge_and_unload()), after, rtol=1e-4, atol=1e-5)
