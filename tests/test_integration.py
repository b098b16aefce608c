"""Where PEFT gets its layers, and that its files and ours are the same where both are right."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from inspect import getattr_static
from pathlib import Path
from typing import Any

import peft.tuners.lora.layer as peft_layers
import peft.tuners.lora.model as peft_lora
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

import audiolora
from audiolora.layers.lora import LoraConv1d
from audiolora.layers.peft_methods import REPLACEMENTS

STOCK = peft_lora.dispatch_default


def net(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv1d(4, 6, 3, padding=1, stride=2), nn.ReLU(), nn.Conv1d(6, 3, 5, padding=2)).to(dtype)


def config(**settings: Any) -> LoraConfig:
    return LoraConfig(**{"r": 2, "lora_alpha": 3, "target_modules": ["0", "2"], **settings})


def kind_of_layer() -> type:
    return type(get_peft_model(net(), config()).base_model.model[0])


def test_enable_and_disable_are_idempotent() -> None:
    assert kind_of_layer() is peft_layers.Conv1d
    audiolora.enable()
    audiolora.enable()
    assert kind_of_layer() is LoraConv1d
    audiolora.disable()
    assert peft_lora.dispatch_default is STOCK
    audiolora.disable()
    assert kind_of_layer() is peft_layers.Conv1d


def test_enabled_restores_what_stood_before() -> None:
    with audiolora.enabled():
        with audiolora.enabled():
            assert kind_of_layer() is LoraConv1d
        assert kind_of_layer() is LoraConv1d
    assert peft_lora.dispatch_default is STOCK
    audiolora.enable()
    with pytest.raises(KeyError), audiolora.enabled():
        audiolora.disable()
        raise KeyError
    assert kind_of_layer() is LoraConv1d, "enabled before the block, enabled after it"


def test_other_layers_are_peft_s() -> None:
    model = nn.ModuleDict(
        {"conv": nn.Conv1d(2, 2, 3), "image": nn.Conv2d(2, 2, 3), "dense": nn.Linear(2, 2), "table": nn.Embedding(5, 2)}
    )
    with audiolora.enabled():
        inner = get_peft_model(model, config(target_modules=list(model))).base_model.model
    kinds = {name: type(module) for name, module in inner.items()}
    assert kinds == {
        "conv": LoraConv1d,
        "image": peft_layers.Conv2d,
        "dense": peft_layers.Linear,
        "table": peft_layers.Embedding,
    }


@pytest.mark.parametrize(
    "module, name", [(nn.ConvTranspose2d(2, 2, 3), "ConvTranspose2d"), (nn.LayerNorm(2), "LayerNorm")]
)
def test_what_peft_refuses_is_refused_by_name(module: nn.Module, name: str) -> None:
    model = nn.ModuleDict({"target": module})
    with audiolora.enabled(), pytest.raises(ValueError, match=f"Target module {name}"):
        get_peft_model(model, config(target_modules=["target"]))
    assert model["target"] is module


def test_a_digit_that_names_a_module_does_not_reach_into_its_weight_norm() -> None:
    model = net()
    torch.nn.utils.parametrizations.weight_norm(model[0])
    with audiolora.enabled():
        adapted = get_peft_model(model, config(target_modules=["0"]))
    assert [name for name, module in adapted.named_modules() if isinstance(module, LoraConv1d)] == [
        "base_model.model.0"
    ]
    assert adapted(torch.zeros(1, 4, 8)).shape == (1, 3, 4)


METHODS = [pytest.param({}, id="lora"), pytest.param({"use_dora": True}, id="dora")]
Side = Callable[[], Any]


@pytest.mark.parametrize("settings", METHODS)
@pytest.mark.parametrize(
    "saves, loads",
    [(audiolora.enabled, nullcontext), (nullcontext, audiolora.enabled)],
    ids=["ours to PEFT", "PEFT's to ours"],
)
def test_a_file_means_the_same_in_peft(saves: Side, loads: Side, settings: dict[str, Any], tmp_path: Path) -> None:
    """Stride and zero padding, no groups: where PEFT's own convolution is right."""
    with saves():
        model = get_peft_model(net(torch.float64), config(**settings)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path)
    with loads():
        loaded = PeftModel.from_pretrained(net(torch.float64), tmp_path).eval()
    assert isinstance(loaded.base_model.model[0], LoraConv1d) is (loads is audiolora.enabled)
    x = torch.randn(2, 4, 20, dtype=torch.float64)
    torch.testing.assert_close(loaded(x), model(x).detach())


@pytest.mark.parametrize("init", [True, False, "gaussian"])
def test_the_same_seed_gives_peft_s_start(init: Any) -> None:
    def factors() -> dict[str, torch.Tensor]:
        model = net()
        torch.manual_seed(7)
        tensors = get_peft_model(model, config(init_lora_weights=init)).state_dict()
        return {name: tensor for name, tensor in tensors.items() if "lora_" in name}

    stock = factors()
    with audiolora.enabled():
        ours = factors()
    assert ours.keys() == stock.keys() and all(torch.equal(ours[name], stock[name]) for name in stock)


def test_every_function_of_peft_that_is_rebound_is_given_back() -> None:
    def bound() -> list[Any]:
        return [getattr_static(owner, name) for owner, name, _ in REPLACEMENTS]

    stock = bound()
    with audiolora.enabled():
        assert bound() == [ours for _, _, ours in REPLACEMENTS]
    assert bound() == stock
    audiolora.enable()
    audiolora.disable()
    assert bound() == stock
    assert not any(function is ours for function, (_, _, ours) in zip(stock, REPLACEMENTS, strict=True))


def test_peft_s_own_models_are_as_without_us() -> None:
    """With audiolora enabled and no convolution of ours in the model: PEFT's combination, by its own code."""

    def combined() -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        model = get_peft_model(nn.Sequential(nn.Linear(5, 4)), LoraConfig(r=2, target_modules=["0"]))
        model.add_adapter("second", LoraConfig(r=2, target_modules=["0"], init_lora_weights=False))
        model.add_weighted_adapter(["default", "second"], [0.3, 0.4], "both", combination_type="linear")
        model.add_weighted_adapter(["default", "second"], [0.3, 0.4], "svd", combination_type="svd")
        return model.state_dict()

    stock = combined()
    with audiolora.enabled():
        ours = combined()
    assert ours.keys() == stock.keys() and all(torch.equal(ours[name], stock[name]) for name in stock)
