"""Saving, loading and switching adapters through PEFT's own calls, on ordinary, grouped and depthwise convolutions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model, inject_adapter_in_model
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from peft.utils.save_and_load import get_base_model_state_dict, set_base_model_state_dict
from torch import nn

import audiolora
from tests.peft_features.networks import CONVOLUTIONS, METHODS, adapted, base, close, config, layers, randomise, sample

pytestmark = pytest.mark.filterwarnings("ignore:Adapter '(default|second)'. 1 LoRA tensor")  # lora_B.bias
each_method = pytest.mark.parametrize("method", METHODS)
low_memory = pytest.mark.parametrize("low_cpu_mem_usage", [False, True], ids=["", "low_cpu_mem_usage"])


def on_meta(model: nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters() if p.is_meta}


@low_memory
@each_method
def test_from_pretrained(method: str, low_cpu_mem_usage: bool, tmp_path: Path) -> None:
    model, x = adapted(**METHODS[method]).eval(), sample()
    model.save_pretrained(tmp_path)
    with audiolora.enabled():
        loaded = PeftModel.from_pretrained(base(), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage).eval()
    assert on_meta(loaded) == set() and not any(p.requires_grad for p in loaded.parameters())
    close(loaded(x), model(x))
    with audiolora.enabled():
        trainable = PeftModel.from_pretrained(base(), tmp_path, is_trainable=True)
    assert {name for name, p in trainable.named_parameters() if p.requires_grad} == {
        name for name, p in model.named_parameters() if p.requires_grad
    }


@low_memory
@each_method
def test_load_adapter_beside_another(method: str, low_cpu_mem_usage: bool, tmp_path: Path) -> None:
    other, x = adapted(seed=8, r=3, **METHODS[method]).eval(), sample()
    other.save_pretrained(tmp_path)
    model = adapted(**METHODS[method]).eval()
    before = model(x)
    with audiolora.enabled():
        model.load_adapter(str(tmp_path), adapter_name="second", low_cpu_mem_usage=low_cpu_mem_usage)
    assert on_meta(model) == set()
    close(model(x), before)
    model.set_adapter("second")
    close(model.eval()(x), other(x))
    with model.disable_adapter():
        close(model(x), base()(x))
    model.set_adapter("default")
    close(model(x), before)


@each_method
def test_an_adapter_injected_empty_takes_its_tensors(method: str) -> None:
    """get_peft_model and inject_adapter_in_model with low_cpu_mem_usage: factors on `meta` until they are loaded."""
    trained, x = adapted(**METHODS[method]).eval(), sample()
    tensors = get_peft_model_state_dict(trained)
    with audiolora.enabled():
        wrapped = get_peft_model(base(), config(**METHODS[method]), low_cpu_mem_usage=True).eval()
        bare = inject_adapter_in_model(config(**METHODS[method]), base(), low_cpu_mem_usage=True).eval()
    for model in (wrapped, bare):
        assert on_meta(model) == {name for name, _ in model.named_parameters() if "lora_" in name}
    set_peft_model_state_dict(wrapped, tensors, low_cpu_mem_usage=True)
    unwrapped = {name.removeprefix("base_model.model."): tensor for name, tensor in tensors.items()}
    set_peft_model_state_dict(bare, unwrapped, low_cpu_mem_usage=True)
    for model in (wrapped, bare):
        assert on_meta(model) == set()
        close(model(x), trained(x))


def test_modules_to_save_beside_adapted_convolutions(tmp_path: Path) -> None:
    """A head and a whole convolution trained in full, next to convolutions with adapters."""
    settings: dict[str, Any] = {"target_modules": ["plain", "grouped"], "modules_to_save": ["head", "depthwise"]}
    model, x = adapted(**settings), sample()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(x).square().sum().backward()
    optimizer.step()
    y = model.eval()(x).detach()
    assert not torch.allclose(model.base_model.model.depthwise.weight, base().depthwise.weight)
    model.save_pretrained(tmp_path)
    with audiolora.enabled():
        loaded = PeftModel.from_pretrained(base(), tmp_path).eval()
    close(loaded(x), y)
    with loaded.disable_adapter():
        close(loaded(x), base()(x))
    merged = loaded.merge_and_unload()
    close(merged(x), y)
    assert list(merged.state_dict()) == list(base().state_dict())


@each_method
def test_rank_and_alpha_patterns(method: str, tmp_path: Path) -> None:
    patterns = {"rank_pattern": {"grouped": 5, "depthwise": 1}, "alpha_pattern": {"grouped": 20}}
    model, x = adapted(**patterns, **METHODS[method]).eval(), sample()
    ranks, alphas = {"plain": 2, "grouped": 5, "depthwise": 1}, {"plain": 3, "grouped": 20, "depthwise": 3}
    for name, layer in layers(model):
        r = ranks[name]
        assert layer.lora_A["default"].weight.shape[0] == layer.lora_B["default"].weight.shape[1] == r
        assert layer.scaling["default"] == alphas[name] / (r**0.5 if method == "rslora" else r)
    model.save_pretrained(tmp_path)
    with audiolora.enabled():
        loaded = PeftModel.from_pretrained(base(), tmp_path).eval()
    close(loaded(x), model(x))


@each_method
def test_adapters_on_different_modules_switch_and_go(method: str) -> None:
    model, x = adapted(target_modules=["plain"], **METHODS[method]).eval(), sample()
    first = model(x)
    with audiolora.enabled():
        model.add_adapter("second", config(target_modules=["grouped", "depthwise"], **METHODS[method]))
    randomise(model, "second", seed=6)
    model.set_adapter("second")
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained and all(".second." in name for name in trained)
    second = model(x)
    with model.disable_adapter():
        close(model(x), base()(x))
    close(model(x), second) and not torch.allclose(first, second)
    model.delete_adapter("second")
    model.set_adapter("default")
    close(model(x), first)
    assert {id(p) for p in model.unload().parameters()} == {
        id(p) for name, p in model.named_parameters() if "lora_" not in name
    }


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@each_method
def test_merging_in_training_mode_knows_no_dropout(method: str, dropout: float) -> None:
    model, x = adapted(lora_dropout=dropout, **METHODS[method]), sample()
    expected = model.eval()(x)
    model.train().merge_adapter()
    close(model(x), expected)
    model.unmerge_adapter()
    close(model.train().merge_and_unload()(x), expected)


def old_weight_norm(model: nn.Module) -> nn.Module:
    torch.nn.utils.weight_norm(model.plain)
    return model


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize(
    "wrap",
    [
        lambda model: model,
        old_weight_norm,
        lambda model: (torch.nn.utils.parametrizations.weight_norm(model.plain), model)[1],
    ],
    ids=["plain", "old weight_norm", "weight_norm"],
)
@pytest.mark.parametrize("method", ["lora", "lora_bias", "dora"])
def test_the_base_s_state_dict_has_the_base_s_names(method: str, wrap: Any) -> None:
    """PEFT's get_base_model_state_dict and set_base_model_state_dict, both ways."""
    plain = wrap(base())
    tensors = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
    with audiolora.enabled():
        model = get_peft_model(plain, config(**METHODS[method]))
        found = get_base_model_state_dict(model)
        assert found.keys() == tensors.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
        other = {name: tensor + 1 for name, tensor in tensors.items()}
        set_base_model_state_dict(model, other)
        assert all(torch.equal(tensor, other[name]) for name, tensor in get_base_model_state_dict(model).items())
    assert set(model.unload().state_dict()) == set(tensors)


def test_every_convolution_is_ours() -> None:
    assert tuple(name for name, _ in layers(adapted())) == CONVOLUTIONS
