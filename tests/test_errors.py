"""What goes wrong in adapting is said with module, value, rule and remedy; the model is as it was."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

import audiolora
from tests.untouched import TARGETS, adapted, everything, refused, same, sample, tiny

CONFIGS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "r=0": ({"r": 0}, ("encoder.conv1: r must be a positive integer, got 0; try r=8",)),
    "r=-1": ({"r": -1}, ("encoder.conv1", "positive integer, got -1", "try r=8")),
    "r=True": ({"r": True}, ("encoder.conv1", "positive integer, got True", "try r=8")),
    "r=2.5": ({"r": 2.5}, ("encoder.conv1", "positive integer, got 2.5", "try r=8")),
    "rank_pattern": ({"rank_pattern": {"conv3": 0}}, ("encoder.conv3: r must be", "got 0", "try r=8")),
    "alpha=0": ({"lora_alpha": 0}, ("encoder.conv1: alpha must be a positive number, got 0; try lora_alpha=4",)),
    "alpha=-1": ({"lora_alpha": -1}, ("encoder.conv1", "positive number, got -1", "try lora_alpha=4")),
    "alpha=nan": ({"lora_alpha": math.nan}, ("encoder.conv1", "positive number, got nan", "try lora_alpha=4")),
    "alpha=inf": ({"lora_alpha": math.inf}, ("encoder.conv1", "positive number, got inf")),
    "alpha=True": ({"lora_alpha": True}, ("encoder.conv1", "positive number, got True")),
    "alpha='8'": ({"lora_alpha": "8"}, ("encoder.conv1", "positive number, got '8'")),
    "alpha_pattern": ({"alpha_pattern": {"conv2": 0}}, ("encoder.conv2: alpha must be", "got 0", "try lora_alpha=4")),
    "no target": ({"target_modules": ["fc9"]}, ("{'fc9'} not found", "bare, conv1, conv2, conv3, q_proj")),
    "no target, a regex": ({"target_modules": "fc.*"}, ("fc.* not found", "Tiny has modules named bare, conv1")),
    "not a layer": (
        {"target_modules": ["conv1", "norm"]},
        (
            "norm: Target module LayerNorm is not supported",
            "nn.Conv1d, nn.ConvTranspose1d, nn.Linear",
            "leave it out of target_modules",
        ),
    ),
    "a container": ({"target_modules": ["encoder"]}, ("encoder: Target module ModuleDict is not supported",)),
    "init": (
        {"init_lora_weights": "corda", "target_modules": ["conv2"]},
        ("encoder.conv2: init_lora_weights='corda'", "use one of"),
    ),
    "lora_bias without a bias": (
        {"lora_bias": True, "target_modules": ["conv1", "conv2", "bare"]},
        ("encoder.bare: lora_bias=True needs a convolution with a bias", "set lora_bias=False or leave the module out"),
    ),
    "lora_bias and bias": ({"lora_bias": True, "bias": "all"}, ("encoder.conv1: lora_bias=True", "set bias='none'")),
    # PEFT's own error, late: the layers are in place by then.
    "a module to save that cannot be": ({"modules_to_save": ["encoder"]}, ()),
}


@pytest.mark.parametrize("settings, named", CONFIGS.values(), ids=CONFIGS)
def test_get_peft_model(settings: dict[str, Any], named: tuple[str, ...]) -> None:
    model = tiny()
    config = LoraConfig(**{"r": 2, "target_modules": TARGETS, **settings})
    with audiolora.enabled():
        refused(model, lambda: get_peft_model(model, config), *named, error=Exception)
        assert get_peft_model(model, LoraConfig(r=2, target_modules=TARGETS))(sample()).isfinite().all()


@pytest.mark.parametrize("settings, named", CONFIGS.values(), ids=CONFIGS)
def test_get_peft_model_on_empty_weights(settings: dict[str, Any], named: tuple[str, ...]) -> None:
    """PEFT then works where whatever is registered goes to ``meta``; what is put back must not."""
    model = tiny()
    config = LoraConfig(**{"r": 2, "target_modules": TARGETS, **settings})
    with audiolora.enabled():
        refused(model, lambda: get_peft_model(model, config, low_cpu_mem_usage=True), *named, error=Exception)


@pytest.mark.parametrize("settings, named", CONFIGS.values(), ids=CONFIGS)
def test_a_second_adapter(settings: dict[str, Any], named: tuple[str, ...]) -> None:
    model = adapted()
    config = LoraConfig(**{"r": 2, "target_modules": TARGETS, **settings})
    with audiolora.enabled():
        refused(model, lambda: model.add_adapter("second", config), *named, error=Exception)
        model.add_adapter("second", LoraConfig(r=2, lora_bias=True, target_modules=["conv1", "conv2"]))
    model.set_adapter("second")
    assert model(sample()).isfinite().all()


ADAPT: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "alpha=0": ({"alpha": 0}, ("alpha must be a positive number, got 0", "try alpha=16")),
    "alpha=nan": ({"alpha": math.nan}, ("alpha must be a positive number, got nan", "try alpha=16")),
    "r=0": ({"r": 0}, ("conv: r must be a positive integer, got 0", "try r=8")),
    "no target": ({"targets": ["conv1", "fc9"]}, ("['fc9'] match no module of Tiny", "conv1, conv2")),
    "not a layer": ({"targets": ["conv1", "norm"]}, ("norm: no adapter fits a LayerNorm", "targets may be Conv1d")),
}


@pytest.mark.parametrize("arguments, named", ADAPT.values(), ids=ADAPT)
def test_adapt(arguments: dict[str, Any], named: tuple[str, ...]) -> None:
    model = tiny()
    refused(model, lambda: audiolora.adapt(model, **arguments), *named)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_a_weight_that_no_sum_can_be_formed_in(dtype: torch.dtype) -> None:
    model = tiny()
    model.encoder["conv1"] = model.encoder["bare"]
    conv = nn.Conv1d(6, 6, 3)
    conv.weight = nn.Parameter(torch.zeros(6, 6, 3).to(dtype), requires_grad=False)
    model.spare = nn.ModuleDict({"conv4": conv})
    before = everything(model)
    with (
        audiolora.enabled(),
        pytest.raises(ValueError, match=rf"spare.conv4: its weight is {dtype}.*float32.*leave the module out"),
    ):
        get_peft_model(model, LoraConfig(r=2, target_modules=["bare", "conv4"]))
    same(model, before)


def test_a_lazy_convolution() -> None:
    """Adapted or not: whatever goes wrong, its weight without a shape is no reason for another error."""
    net = nn.Sequential(nn.LazyConv1d(4, 3), nn.Conv1d(4, 4, 3))
    with audiolora.enabled(), pytest.raises(ValueError, match="0: its weight has no shape before the model has run"):
        get_peft_model(net, LoraConfig(target_modules=["0"]))
    with audiolora.enabled(), pytest.raises(ValueError, match="1: r must be a positive integer"):
        get_peft_model(net, LoraConfig(r=0, target_modules=["1"]))
    assert net(torch.zeros(1, 2, 9)).shape == (1, 4, 5)
