"""`audiolora.quantize` and `dequantize`: what they take, what they refuse, and what is saved."""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn.utils import parametrizations

import audiolora
from audiolora.export import export
from audiolora.layers.quantized import codes_of, quantization_of
from tests.untouched import everything, same


def tiny(**more: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential()
    net.add_module("conv", nn.Conv1d(4, 8, 3, padding=1))
    net.add_module("up", nn.ConvTranspose1d(8, 6, 4, stride=2, groups=2))
    net.add_module("proj", nn.Linear(12, 5))
    for name, module in more.items():
        net.add_module(name, module)
    return net


X = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("bits", "most"), [(8, 0.02), (4, 0.25)])
def test_every_convolution_and_linear_by_default(bits: int, most: float) -> None:
    net = tiny()
    y = net(X)
    assert audiolora.quantize(net, bits) is net
    assert all(quantization_of(module) is not None for module in net)
    assert 0 < (net(X) - y).norm() / y.norm() < most


def test_target_modules_are_peft_s() -> None:
    for chosen in (["conv", "proj"], "conv|proj"):
        net = audiolora.quantize(tiny(), target_modules=chosen)
        assert [quantization_of(module) is not None for module in net] == [True, False, True]


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("meta", [False, True])
def test_a_state_dict_goes_into_a_model_quantised_in_the_same_way(bits: int, meta: bool) -> None:
    net = audiolora.quantize(tiny(), bits)
    file = io.BytesIO()
    torch.save(net.state_dict(), file)
    file.seek(0)
    with torch.device("meta" if meta else "cpu"):
        other = audiolora.quantize(tiny().requires_grad_(False), bits)
    other.load_state_dict(torch.load(file, weights_only=True), assign=meta)
    assert torch.equal(other(X), net(X))
    for mine, theirs in zip(net, other, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(codes_of(mine), codes_of(theirs), strict=True))


def test_an_adapter_is_saved_and_loaded_over_a_quantised_base(tmp_path: Any) -> None:
    model = audiolora.adapt(audiolora.quantize(tiny()), r=2, targets=["conv", "proj"])
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    model.save_pretrained(tmp_path)
    with audiolora.enabled():
        loaded = audiolora_loaded(audiolora.quantize(tiny()), str(tmp_path))
    assert torch.equal(loaded.eval()(X), model.eval()(X))


def audiolora_loaded(base: nn.Module, folder: str) -> nn.Module:
    from peft import PeftModel

    return PeftModel.from_pretrained(base, folder)


def test_weight_norm_is_folded_in() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        old = torch.nn.utils.weight_norm(nn.Conv1d(4, 4, 3))
    for normed in (parametrizations.weight_norm(nn.Conv1d(4, 4, 3)), old):
        weight = normed.weight.detach().clone()
        audiolora.quantize(normed)
        assert (normed.weight - weight).abs().max() <= weight.abs().max() / 254 * 1.01
        assert [key for key, _ in normed.named_parameters()] == ["bias"]
        audiolora.dequantize(normed)
        assert list(normed.state_dict()) == ["weight", "bias"] and "Parametrized" not in type(normed).__name__


def test_dequantised_is_the_rounded_float_model() -> None:
    net = audiolora.quantize(tiny())
    y = net(X)
    weight = codes_of(net.conv)[0] * codes_of(net.conv)[1][:, None, None]
    audiolora.dequantize(net)
    assert torch.equal(net(X), y) and torch.equal(net.conv.weight, weight)
    assert list(net.state_dict()) == list(tiny().state_dict()) and not net.conv.weight.requires_grad
    with pytest.raises(ValueError, match="nothing in this Sequential is quantised"):
        audiolora.dequantize(net)


def test_what_torch_refuses_a_float_weight_says_so() -> None:
    net = audiolora.quantize(tiny())
    with pytest.raises(NotImplementedError, match="int8 takes no float weight.*dequantize"):
        net.conv.weight = torch.zeros(8, 4, 3)


def refused(model: nn.Module, call: Callable[[], Any], message: str) -> None:
    before = everything(model)
    with pytest.raises(ValueError, match=message):
        call()
    same(model, before)


def tied() -> nn.Sequential:
    net = tiny(again=nn.Linear(12, 5))
    net.again.weight = net.proj.weight
    return net


def broken() -> nn.Sequential:
    net = tiny()
    net.conv.weight.data[0, 0, 0] = torch.nan
    return net


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (tiny, {"bits": 3}, "bits must be 8 or 4, got 3"),
        (tiny, {"bits": True}, "bits must be 8 or 4, got True"),
        (tiny, {"bits": 8, "kind": "nf4"}, "of 8 bits, kind must be one of int8, got 'nf4'"),
        (tiny, {"bits": 4, "group_size": 1}, "group_size must be a whole number of at least 2, got 1"),
        (tiny, {"target_modules": ["conv", "cnv"]}, "'cnv' matches nothing in Sequential.*conv, proj, up"),
        (tiny, {"target_modules": []}, "an empty list matches nothing"),
        (tiny, {"target_modules": "(conv"}, "no regular expression"),
        (lambda: tiny(norm=nn.BatchNorm1d(5)), {"target_modules": ["norm"]}, "norm: a BatchNorm1d cannot be quantised"),
        (lambda: tiny(emb=nn.Embedding(5, 5)), {"target_modules": ["emb"]}, "emb: a Embedding cannot be quantised"),
        (tied, {"target_modules": ["conv", "again"]}, "again: its weight is another module's too.*untie"),
        (broken, {"target_modules": ["conv"]}, "conv: its weight has values that are not finite"),
        (
            lambda: tiny(spec=parametrizations.spectral_norm(nn.Conv1d(4, 4, 3))),
            {"target_modules": ["proj", "spec"]},
            "spec: its weight is computed by something else",
        ),
        (
            lambda: audiolora.quantize(tiny(), target_modules=["conv"]),
            {"target_modules": ["conv"]},
            "conv: quantised already, in int8",
        ),
        (lambda: nn.Sequential(nn.ReLU()), {}, "has no nn.Conv1d"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(make: Any, arguments: dict[str, Any], message: str) -> None:
    model = make()
    refused(model, lambda: audiolora.quantize(model, **arguments), message)


def test_a_weight_without_a_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="lazy: its weight has no shape"):
        audiolora.quantize(tiny(lazy=nn.LazyConv1d(4, 3)))


def test_an_adapted_model_is_refused() -> None:
    model = get_peft_model(tiny(), LoraConfig(target_modules=["proj"]))
    with pytest.raises(TypeError, match="adapted already.*quantise it first"):
        audiolora.quantize(model)


def test_a_start_that_corrects_the_base_is_refused() -> None:
    model = audiolora.quantize(tiny())
    with pytest.raises(ValueError, match="conv: this start corrects the base's weight, which is quantised"):
        get_peft_model(model, LoraConfig(r=2, target_modules=["conv"], init_lora_weights="pissa"))


def test_a_default_with_a_broken_weight_is_refused_too() -> None:
    model = broken()
    refused(model, lambda: audiolora.quantize(model), "conv: .*not finite")


def test_inspect_counts_what_is_quantised() -> None:
    plain = audiolora.inspect(audiolora.adapt(tiny(), r=2, targets=["conv"]))
    quantised = audiolora.inspect(audiolora.adapt(audiolora.quantize(tiny()), r=2, targets=["conv"]))
    assert quantised.total_parameters == plain.total_parameters
    assert quantised.rows[0].kind == "Conv1d int8" and quantised.rows[0].parameters == plain.rows[0].parameters


def test_a_copy_is_quantised_by_itself() -> None:
    net = audiolora.quantize(tiny())
    audiolora.dequantize(copy.deepcopy(net))
    assert quantization_of(net.conv) is not None and net.conv.weight.shape == (8, 4, 3)


@pytest.mark.parametrize("method", ["lora", "dora", "loha", "lokr", "adalora"])
@pytest.mark.parametrize("bits", [8, 4])
def test_an_index_names_a_module_and_no_part_of_a_weight(method: str, bits: int) -> None:
    net = audiolora.quantize(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)), bits)
    schedule = audiolora.RankSchedule(total_step=10) if method == "adalora" else None
    model = audiolora.adapt(net, method, r=2, targets=["0", "2"], schedule=schedule)
    assert [row.name for row in audiolora.inspect(model).rows] == ["0", "2"]


@pytest.mark.parametrize("method", ["adalora", "loha", "lokr"])
@pytest.mark.parametrize("bits", [8, 4])
def test_every_method_trains_over_it_and_is_what_it_is_over_the_rounded_weights(
    method: str, bits: int, tmp_path: Any
) -> None:
    schedule = audiolora.RankSchedule(total_step=10) if method == "adalora" else None
    targets: dict[str, Any] = {"r": 2, "targets": ["conv", "up", "proj"], "schedule": schedule}
    torch.manual_seed(2)
    model = audiolora.adapt(audiolora.quantize(tiny(), bits), method, **targets)
    torch.manual_seed(2)
    rounded = audiolora.adapt(audiolora.dequantize(audiolora.quantize(tiny(), bits)), method, **targets)
    for each in (model, rounded):
        for i, parameter in enumerate(p for p in each.parameters() if p.requires_grad):
            parameter.data.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i)))
        each(X).square().sum().backward()
    torch.testing.assert_close(model(X), rounded(X))
    gradients = [{n: p.grad for n, p in each.named_parameters() if p.requires_grad} for each in (model, rounded)]
    torch.testing.assert_close(*gradients)
    model.save_pretrained(tmp_path)
    loaded = audiolora_loaded(audiolora.quantize(tiny(), bits), str(tmp_path)).eval()
    torch.testing.assert_close(loaded(X), model.eval()(X))
    with pytest.raises(ValueError, match=r"audiolora.dequantize\(model\) first"):
        model.merge_and_unload()
    merged = audiolora.dequantize(model).merge_and_unload()
    torch.testing.assert_close(merged(X), loaded(X), rtol=1e-4, atol=1e-5)


def test_what_another_library_has_quantised_is_left_and_refused_by_its_name(tmp_path: Any) -> None:
    net = tiny()
    net.proj.weight = nn.Parameter(
        torch.zeros(5, 12, dtype=torch.int8), requires_grad=False
    )  # as bitsandbytes keeps it
    with pytest.raises(ValueError, match=r"proj: its weight is torch.int8, quantised by something else"):
        audiolora.quantize(net, target_modules=["conv", "proj"])
    with pytest.raises(ValueError, match=r"^proj: its weight is torch.int8.*take LoRA"):
        audiolora.adapt(net, "lokr", r=2, targets=["conv", "proj"])
    with pytest.raises(ValueError, match=r"^proj: its weight is torch.int8.*no exported graph"):
        export(net, tmp_path / "bundle", X)
    audiolora.quantize(net)
    assert [name for name, module in net.named_modules() if quantization_of(module)] == ["conv", "up"]
