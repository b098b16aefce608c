"""Merging: of all layers or of none, and never into a weight that cannot hold the result."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from torch.nn.utils import parametrizations

import audiolora
from tests.untouched import Tiny, adapted, everything, randomise, refused, same, sample, tiny


def spectral() -> tuple[Tiny, tuple[str, ...]]:
    model = tiny()
    parametrizations.spectral_norm(model.encoder["bare"])
    return model, ("encoder.bare: its parametrization", "cannot hold the merged weight", "remove_parametrizations")


def tied() -> tuple[Tiny, tuple[str, ...]]:
    model = tiny()
    model.encoder["twin"] = nn.Conv1d(6, 6, 1, bias=False)
    model.encoder["twin"].weight = model.encoder["bare"].weight
    return model, ("encoder.bare: its tensors are also those of encoder.twin", "leave the adapter unmerged", "untie")


def broken() -> tuple[Tiny, tuple[str, ...]]:
    return tiny(), ("encoder.bare: NaNs detected in the merged weight", "['default']")


MERGES: dict[str, Callable[[PeftModel], Any]] = {
    "merge_adapter": lambda model: model.merge_adapter(safe_merge=True),
    "merge_and_unload": lambda model: model.merge_and_unload(safe_merge=True),
}


@pytest.mark.parametrize("merge", MERGES.values(), ids=MERGES)
@pytest.mark.parametrize("situation", [spectral, tied, broken])
def test_a_merge_that_cannot_be_exact(situation: Any, merge: Callable[[PeftModel], Any]) -> None:
    """The convolution that refuses is the fourth: the three before it are unmerged again, bit for bit."""
    base, named = situation()
    with audiolora.enabled():
        model = get_peft_model(base.eval(), LoraConfig(r=2, target_modules=["conv1", "conv2", "conv3", "bare"])).eval()
    randomise(model)
    if situation is broken:
        with torch.no_grad():
            model.base_model.model.encoder["bare"].lora_B["default"].weight[0] = math.nan
        before = everything(model)
        with pytest.raises(ValueError) as raised:
            merge(model)
        assert all(part in str(raised.value) for part in named)
        same(model, before)
        return
    refused(model, lambda: merge(model), *named)


def test_a_merge_that_fails_in_a_layer_of_peft_s_unloads_none_of_ours() -> None:
    model = adapted()
    with torch.no_grad():
        model.base_model.model.q_proj.lora_B["default"].weight[0, 0] = math.nan
    before = everything(model)
    with pytest.raises(ValueError, match="NaNs detected"):
        model.merge_and_unload(safe_merge=True)
    same(model, before)


def test_a_tied_weight_that_is_adapted_twice_and_unloaded_stays_tied() -> None:
    base, _ = tied()
    tensors = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    with audiolora.enabled():
        model = get_peft_model(base, LoraConfig(r=2, target_modules=["bare", "twin"]))
    randomise(model)
    model(sample())
    refused(model.eval(), model.merge_adapter, "encoder.bare: its tensors are also those of encoder.twin")
    plain = model.unload()
    assert plain.encoder["bare"].weight is plain.encoder["twin"].weight
    assert list(plain.state_dict()) == list(tensors)
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in plain.state_dict().items())


def test_one_convolution_under_two_names_is_no_tie() -> None:
    """The module itself is shared: what is merged is what both names mean."""
    shared = nn.Conv1d(4, 4, 3, padding=1)
    with audiolora.enabled():
        model = get_peft_model(nn.Sequential(shared, nn.ReLU(), shared), LoraConfig(r=2, target_modules=["0"])).eval()
    randomise(model)
    y = model(sample())
    model.merge_adapter()
    torch.testing.assert_close(model(sample()), y)


def test_low_precision_rounds_and_that_is_no_error() -> None:
    with audiolora.enabled():
        model = get_peft_model(tiny().bfloat16(), LoraConfig(r=2, target_modules=["conv1", "conv3"])).eval()
    randomise(model)
    y = model(sample().bfloat16())
    model.merge_adapter(safe_merge=True)
    torch.testing.assert_close(model(sample().bfloat16()), y, rtol=0.1, atol=0.1)


def test_the_second_of_two_merges_fails_and_the_first_stays() -> None:
    model = adapted(target_modules=["conv1", "conv3"])
    model.add_adapter("second", LoraConfig(r=2, target_modules=["conv1", "conv3"]))
    randomise(model)
    model.merge_adapter(["default"])
    with torch.no_grad():
        model.base_model.model.encoder["conv3"].lora_B["second"].weight.fill_(math.inf)
    before = everything(model)
    with warnings.catch_warnings(), pytest.raises(ValueError, match="encoder.conv3: NaNs detected"):
        warnings.simplefilter("ignore")
        model.merge_adapter(["second"], safe_merge=True)
    same(model, before)
