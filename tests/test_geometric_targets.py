"""Which modules GmP converts, and which it refuses by name, with nothing changed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

import audiolora
from audiolora import geometric
from tests.test_geometric import Mixed, mixed


def test_targets_are_peft_s() -> None:
    def chosen(targets: Any) -> list[str]:
        return geometric.convert(nn.ModuleDict({"a": mixed(), "b": mixed()}), targets)

    assert chosen(["conv"]) == ["a.conv", "b.conv"]
    assert chosen(["a.conv", "head"]) == ["a.conv", "a.head", "b.head"]
    assert chosen(r"b\.(up|head)") == ["b.up", "b.head"]
    assert len(chosen(None)) == 6


def shared() -> Mixed:
    net = mixed()
    net.other = nn.Linear(4, 3).double()
    net.other.weight = net.head.weight
    return net


def with_int8() -> Mixed:
    net = mixed()
    net.head.weight = nn.Parameter(torch.zeros(3, 4, dtype=torch.int8), requires_grad=False)
    return net


def with_nan() -> Mixed:
    net = mixed()
    net.head.weight.data[0, 0] = torch.nan
    return net


def normed() -> Mixed:
    net = mixed()
    nn.utils.parametrizations.weight_norm(net.head)
    return net


@pytest.mark.parametrize(
    "make, targets, message",
    [
        (mixed, ["conv", "norm"], "norm: a LayerNorm has no length and direction"),
        (mixed, ["conv", "nothing"], r"match nothing in this Mixed: \['nothing'\]"),
        (mixed, "nothing", "match nothing"),
        (mixed, [], "match nothing"),
        (shared, ["conv", "head"], "head: its weight is also that of other; untie"),
        (with_int8, ["conv", "head"], "head: its weight is torch.int8"),
        (with_nan, ["conv", "head"], "head: its weight has numbers that are not finite"),
        (normed, ["conv", "head"], "head: its weight is computed already.*remove_parametrizations"),
        (lambda: nn.Sequential(nn.LazyLinear(2)), ["0"], "0: its weight has no shape"),
        (lambda: nn.Sequential(nn.ReLU()), None, "has no linear layer or 1-D convolution"),
    ],
)
def test_what_cannot_be_converted_is_named_and_nothing_is(make: Any, targets: Any, message: str) -> None:
    net = make()
    with pytest.raises(ValueError, match=message):
        geometric.convert(net, targets)
    assert not any(True for _ in geometric.converted(net))
    with pytest.raises(ValueError, match="is converted; call audiolora.geometric.convert first"):
        geometric.revert(net)


def test_an_adapted_model_is_refused() -> None:
    model = audiolora.adapt(mixed(), r=2, targets=["conv"])
    with pytest.raises(TypeError, match="the model is adapted; convert it first"):
        geometric.convert(model, ["head"])


def test_plain_peft_s_injection_sees_converted_layers_as_targets() -> None:
    net = mixed()
    geometric.convert(net)
    with audiolora.enabled():
        model = get_peft_model(net, LoraConfig(r=2, target_modules="all-linear"))
    assert [row.name for row in audiolora.inspect(model).rows] == ["head"]
