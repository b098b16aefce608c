"""The weight kept for inference: never an old one, and never formed twice for nothing."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from torch.func import functional_call
from torch.nn.utils import parametrizations, parametrize

import audiolora
from audiolora.layers.lora import LoraConv1d


def adapted(wrap: Callable[[nn.Module], nn.Module] = lambda conv: conv, **settings: Any) -> PeftModel:
    torch.manual_seed(0)
    net = nn.ModuleDict({"conv": wrap(nn.Conv1d(6, 8, 3))})
    with audiolora.enabled():
        model = get_peft_model(net, LoraConfig(r=2, target_modules=["conv"], init_lora_weights=False, **settings))
    return model.eval()


def layer(model: PeftModel) -> LoraConv1d:
    return model.base_model.model["conv"]


X = torch.randn(2, 6, 20, generator=torch.Generator().manual_seed(1))


def from_scratch(model: PeftModel) -> torch.Tensor:
    """The output of a copy, which has kept nothing."""
    return layer(copy.deepcopy(model))(X)


def sums(model: PeftModel, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts the times that W' is formed."""
    formed: list[int] = []
    original = LoraConv1d.adapt_weight

    def counting(self: LoraConv1d, weight: torch.Tensor, adapters: list[str]) -> torch.Tensor:
        formed.append(1)
        return original(self, weight, adapters)

    monkeypatch.setattr(LoraConv1d, "adapt_weight", counting)
    return formed


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("wrap", [lambda conv: conv, parametrizations.weight_norm], ids=["plain", "weight_norm"])
def test_it_is_formed_once(wrap: Any, mode: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = adapted(wrap, use_dora=True)
    formed = sums(model, monkeypatch)
    with mode():
        first = layer(model)(X)
        assert all(torch.equal(layer(model)(X), first) for _ in range(3))
    assert len(formed) == 1


def factor(model: PeftModel) -> nn.Parameter:
    return layer(model).lora_A["default"].weight


def base(model: PeftModel) -> nn.Parameter:
    return next(p for name, p in model.named_parameters() if name.endswith(("weight.original", "weight.original1")))


CHANGES: dict[str, Callable[[PeftModel], Any]] = {
    "an optimiser's step": lambda model: factor(model).mul_(1.5),
    "a write behind autograd's back": lambda model: factor(model).data.mul_(1.5),
    "an exchange of two rows": lambda model: factor(model).data.copy_(factor(model).data.flip(0)),
    "another storage": lambda model: setattr(factor(model), "data", factor(model).data * 1.5),
    "another parameter": lambda model: setattr(
        layer(model).lora_B["default"], "weight", nn.Parameter(layer(model).lora_B["default"].weight * 2)
    ),
    "a scale": lambda model: layer(model).set_scale("default", 3.0),
    "the base": lambda model: base(model).add_(0.5),
    "the base behind autograd's back": lambda model: base(model).data.copy_(base(model).data.flip(0)),
    "a state dict": lambda model: model.load_state_dict({k: v + 1 for k, v in model.state_dict().items()}),
    "dtype": lambda model: model.double().float(),
    "the kept weight itself": lambda model: layer(model).weight.mul_(2.0),
    "the kept weight behind autograd's back": lambda model: layer(model).weight.data.mul_(2.0),
}


@pytest.mark.parametrize("wrap", [lambda conv: conv, parametrizations.weight_norm], ids=["plain", "weight_norm"])
@pytest.mark.parametrize("change", CHANGES)
def test_after_a_change_it_is_a_new_one(change: str, wrap: Any) -> None:
    model = adapted(wrap)
    with torch.no_grad():
        before = layer(model)(X)
        CHANGES[change](model)
        torch.testing.assert_close(layer(model)(X), from_scratch(model))
        changed = not torch.allclose(layer(model)(X), before, rtol=1e-3)
    assert changed is (change != "dtype" and not change.startswith("the kept weight"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_small_change_behind_autograd_s_back_is_seen_in_low_precision_too(dtype: torch.dtype) -> None:
    model = adapted().to(dtype)
    with torch.no_grad():
        for row in range(6):
            before = layer(model).weight.clone()
            layer(model).lora_B["default"].weight.data[row].mul_(1.02)
            assert not torch.equal(layer(model).weight, before)


class Scaled(nn.Module):
    """A parametrization with a number that no tensor holds."""

    scale = 1.0

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight * self.scale


def test_what_a_stranger_s_parametrization_makes_is_not_kept() -> None:
    scaled = Scaled()

    def wrap(conv: nn.Module) -> nn.Module:
        parametrize.register_parametrization(conv, "weight", scaled)
        return conv

    model = adapted(wrap)
    with torch.no_grad():
        layer(model)(X)
        scaled.scale = 2.0
        torch.testing.assert_close(layer(model)(X), from_scratch(model), rtol=0, atol=0)


def test_switching_adapters_merging_and_disabling() -> None:
    model = adapted()
    model.add_adapter("second", LoraConfig(r=3, target_modules=["conv"], init_lora_weights=False))
    with torch.no_grad():
        for names in (["default"], ["second"], ["default", "second"], ["default"]):
            model.base_model.set_adapter(names)
            unmerged = layer(model)(X)
            torch.testing.assert_close(unmerged, from_scratch(model))
            with model.disable_adapter():
                assert torch.equal(layer(model)(X), layer(model).get_base_layer()(X))
                assert not torch.allclose(layer(model)(X), unmerged)
        model.merge_adapter()
        torch.testing.assert_close(layer(model)(X), unmerged)
        model.unmerge_adapter()
        assert torch.equal(layer(model)(X), unmerged)


def test_what_is_kept_in_inference_mode_can_be_trained_through() -> None:
    model = adapted()
    with torch.inference_mode():
        expected = layer(model)(X).clone()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    x = X.clone().requires_grad_()
    y = layer(model)(x)
    y.sum().backward()
    torch.testing.assert_close(y.detach(), expected)
    assert x.grad is not None


def test_under_a_gradient_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    model = adapted()
    formed = sums(model, monkeypatch)
    for _ in range(2):
        layer(model)(X).sum().backward()
    assert len(formed) == 2 and factor(model).grad is not None


def test_training_gives_the_memory_back_and_copies_and_pickles_are_empty() -> None:
    model = adapted()
    with torch.no_grad():
        y = layer(model)(X)
    assert layer(model)._cache._entry is not None
    assert layer(copy.deepcopy(model))._cache._entry is None
    assert len(pickle.dumps(layer(model)._cache)) < 200
    model.train()
    assert layer(model)._cache._entry is None
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(layer(model)(X), y)


def test_functional_call_and_vmap_see_their_own_parameters() -> None:
    model = adapted()
    with torch.no_grad():
        layer(model)(X)
        name = next(name for name, p in model.named_parameters() if p is factor(model))
        other = factor(model).detach() * 2
        swapped = functional_call(layer(model), {name.removeprefix("base_model.model.conv."): other}, X)
        both = torch.vmap(lambda A: functional_call(layer(model), {name.removeprefix("base_model.model.conv."): A}, X))(
            torch.stack([factor(model).detach(), other])
        )
        torch.testing.assert_close(both[0], layer(model)(X))
        factor(model).mul_(2)
        torch.testing.assert_close(swapped, layer(model)(X))
        torch.testing.assert_close(both[1], swapped)


@pytest.mark.parametrize("k", [1, 40])
def test_a_model_traced_under_a_gradient_takes_other_batches_and_lengths(k: int) -> None:
    with audiolora.enabled():
        config = LoraConfig(r=2, target_modules=["0"], init_lora_weights=False)
        model = get_peft_model(nn.Sequential(nn.Conv1d(64, 64, k)), config).eval()
    traced = torch.jit.trace(model, torch.randn(2, 64, 1100), check_trace=False)
    x = torch.randn(3, 64, 1200)
    torch.testing.assert_close(traced(x), model(x))


def test_a_traced_model_holds_the_factors_not_their_sum() -> None:
    model = adapted()
    with torch.no_grad():
        layer(model)(X)
        traced = torch.jit.trace(layer(model), X, check_trace=False)
        factor(model).mul_(3)
        torch.testing.assert_close(traced(X), layer(model)(X))


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_autocast_does_not_round_what_is_kept(dora: bool) -> None:
    """Autocast would take the factors' product in bf16, and what it left would serve float32 inference afterwards."""
    model = adapted(use_dora=dora)
    expected = from_scratch(model)
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            layer(model)(X)
        torch.testing.assert_close(layer(model)(X), expected, rtol=0, atol=0)
