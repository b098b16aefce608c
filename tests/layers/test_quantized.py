"""Adapters over quantised weights are adapters over the rounded float weights, in every geometry and every way."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

import audiolora
from audiolora.layers.quantized import codes_of, quantization_of
from tests.layers.convolutions import CELLS, METHODS, Convolution

FORMS = [(8, None), (4, "nf4"), (4, "int4")]


def with_adapter(net: nn.Module, **settings: Any) -> Any:
    torch.manual_seed(1)
    config = LoraConfig(**{"r": 3, "target_modules": ["conv"], "init_lora_weights": False, **settings})
    with audiolora.enabled():
        return get_peft_model(net, config)


def pair(net: nn.Module, bits: int = 8, kind: str | None = None, **settings: Any) -> tuple[Any, Any]:
    """The quantised network and its float twin with the rounded weights, with the same adapter on both."""
    quantised = audiolora.quantize(net, bits, kind=kind, target_modules=["conv"], group_size=8)
    rounded = audiolora.dequantize(copy.deepcopy(quantised))
    assert quantization_of(quantised.get_submodule("conv")) is not None  # copies are independent
    return with_adapter(quantised, **settings), with_adapter(rounded, **settings)


def gradients(model: Any, x: torch.Tensor) -> list[torch.Tensor]:
    x = x.clone().requires_grad_()
    y = model(x)
    y.sin().sum().backward()
    trained = [p.grad for p in model.parameters() if p.requires_grad]
    return [y.detach(), x.grad, *trained]


@pytest.mark.parametrize(("row", "method"), CELLS)
def test_training_and_inference_are_those_over_the_rounded_weights(row: Convolution, method: str) -> None:
    bits, kind = FORMS[len(row.name) % 3]
    settings = {**METHODS[method], "r": row.r}
    quantised, rounded = pair(row.model(), bits, kind, **settings)
    found = zip(gradients(quantised.train(), row.input()), gradients(rounded.train(), row.input()), strict=True)
    for got, wanted in found:
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)
    with torch.no_grad():
        torch.testing.assert_close(quantised.eval()(row.input()), rounded.eval()(row.input()), rtol=1e-10, atol=1e-10)
        with quantised.disable_adapter(), rounded.disable_adapter():
            torch.testing.assert_close(quantised(row.input()), rounded(row.input()))


def wide() -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleDict({"conv": nn.Conv1d(48, 64, 5, padding=2)})


@pytest.mark.parametrize("method", list(METHODS))
@pytest.mark.parametrize("length", [2, 200], ids=["beside the base", "fused"])
def test_nothing_of_the_weight_is_kept_from_forward_to_backward(method: str, length: int) -> None:
    """Neither W nor W' of 48 · 64 · 5 elements, whichever operator is taken."""
    quantised, rounded = pair(wide(), **METHODS[method])
    x, kept = torch.randn(1, 48, length), []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        quantised.base_model.model["conv"](x)
    assert (64, 48, 5) not in kept
    for got, wanted in zip(
        gradients(quantised.base_model.model["conv"], x), gradients(rounded.base_model.model["conv"], x), strict=True
    ):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("bits", "kind"), FORMS)
def test_no_float_weight_is_held(bits: int, kind: str | None) -> None:
    net = wide()
    audiolora.quantize(net, bits, kind=kind)
    tensors = [*net.parameters(), *net.buffers()]
    resident = sum(tensor.nbytes for tensor in tensors)
    assert resident == 64 * (4 + {8: 48 * 5 + 4, 4: 48 * 5 // 2 + 4 * 4}[bits])  # bias; codes and scales
    assert not any(tensor.is_floating_point() and tensor.numel() > 64 * 4 for tensor in tensors)


def test_dropout_on_the_low_rank_path() -> None:
    quantised, rounded = pair(wide(), lora_dropout=0.5)
    x, found = torch.randn(2, 48, 20), []
    for model in (quantised, rounded):
        torch.manual_seed(3)
        found.append(gradients(model.base_model.model["conv"].train(), x))
    for got, wanted in zip(*found, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-4)


def test_the_weight_is_unpacked_once_for_inference_and_again_when_the_codes_change() -> None:
    model, _ = pair(wide())
    layer, x = model.base_model.model["conv"].eval(), torch.randn(1, 48, 9)
    quantization, count = quantization_of(layer.get_base_layer()), []
    original = quantization.unpacked
    quantization.unpacked = lambda codes: count.append(1) or original(codes)
    with torch.no_grad():
        y = layer(x)
        assert torch.equal(layer(x), y) and len(count) == 1
        codes, scale = codes_of(layer.get_base_layer())
        scale.mul_(2)
        assert not torch.allclose(layer(x), y) and len(count) == 2
        scale.div_(2)
        codes[0, 0, 0] = -codes[0, 0, 0] + 1
        assert not torch.equal(layer(x), y)


def test_a_merge_is_refused_and_the_model_as_it_was() -> None:
    torch.manual_seed(0)
    net = nn.ModuleDict({"conv": nn.Conv1d(4, 6, 3), "proj": nn.Linear(6, 6)})
    for name in ("conv", "proj"):
        model = with_adapter(audiolora.quantize(copy.deepcopy(net), target_modules=[name]), target_modules=[name])
        before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
        for merge in (model.merge_and_unload, model.merge_adapter):
            with pytest.raises(ValueError, match=f"{name}: its weight is kept in int8.*audiolora.dequantize"):
                merge()
        assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
        x = torch.randn(2, 4, 9) if name == "conv" else torch.randn(2, 6)
        y = model.base_model.model[name].eval()(x)
        audiolora.dequantize(model)
        torch.testing.assert_close(model.base_model.model[name](x), y)
        merged = model.merge_and_unload()
        torch.testing.assert_close(merged[name](x), y)
        assert list(merged.state_dict()) == list(net.state_dict())


def test_a_linear_under_peft_s_layer() -> None:
    for settings in ({}, {"use_dora": True}, {"lora_bias": True}):
        torch.manual_seed(0)
        quantised, rounded = pair(nn.ModuleDict({"conv": nn.Linear(12, 8)}), 4, "nf4", **settings)
        x = torch.randn(3, 12)
        found = (gradients(model.base_model.model["conv"], x) for model in (quantised, rounded))
        for got, wanted in zip(*found, strict=True):
            torch.testing.assert_close(got, wanted)


def test_a_head_of_the_adapter_s_own_is_float_and_trained() -> None:
    torch.manual_seed(0)
    net = audiolora.quantize(nn.ModuleDict({"conv": nn.Conv1d(4, 6, 3), "head": nn.Linear(6, 5)}))
    model = with_adapter(net, modules_to_save=["head"])
    wrapper = model.base_model.model["head"]
    own = wrapper.modules_to_save["default"]
    assert quantization_of(wrapper.original_module) is not None and type(own) is nn.Linear
    assert own.weight.requires_grad and own.bias.requires_grad
    assert torch.equal(own.weight, wrapper.original_module.weight)


def test_mixed_batches() -> None:
    quantised, rounded = pair(wide())
    x, names = torch.randn(2, 48, 9), ["default", "__base__"]
    layers = [model.eval().base_model.model["conv"] for model in (quantised, rounded)]
    got, wanted = (layer(x, adapter_names=names) for layer in layers)
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_change_of_dtype_leaves_codes_and_scales(dtype: torch.dtype) -> None:
    net = audiolora.quantize(wide())["conv"]
    codes, scale = (tensor.clone() for tensor in codes_of(net))
    exact = (codes.double() * scale.double()[:, None, None]).to(dtype)
    net.to(dtype)
    assert net.weight.dtype == dtype == net.bias.dtype
    torch.testing.assert_close(net.weight, exact, rtol=torch.finfo(dtype).eps, atol=0)
    assert torch.equal(codes_of(net)[0], codes) and torch.equal(codes_of(net)[1], scale)
    net.float()
    assert torch.equal(net.weight, codes * scale[:, None, None])


def test_under_autocast_and_compile() -> None:
    quantised, rounded = pair(wide())
    layers = [model.train().base_model.model["conv"] for model in (quantised, rounded)]
    x = torch.randn(2, 48, 20)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layers[0](x), layers[1](x))
    torch.compiler.reset()
    compiled = torch.compile(layers[0], fullgraph=True, backend="aot_eager")
    for got, wanted in zip(gradients(compiled, x), gradients(layers[1], x), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-4)
