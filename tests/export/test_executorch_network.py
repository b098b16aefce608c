"""Adapters in constants of operators, in torch: every convolution of the contract table, and what is refused."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import audiolora
from audiolora.export.executorch_bundle import fixed_slots, padded
from audiolora.export.executorch_network import WithConstants
from audiolora.export.slots import copied, filled, fold, plain_network, targets
from tests.export.networks import adapted, randomise, sample
from tests.export.test_geometries import ROWS, model_of
from tests.layers.convolutions import Convolution


def with_constants(model: nn.Module, x: torch.Tensor, adapter: str | None, max_rank: int | None = None) -> nn.Module:
    """The network with an adapter's values in its slots; zeros for None."""
    twin = copied(model)
    folds = {name: fold(twin, name) for name in (["default"] if adapter is None else [adapter])}
    plain = plain_network(twin)
    made = targets(plain, folds.values())
    slots = fixed_slots(made, folds.values(), max_rank)
    arrays = padded(filled(slots, {} if adapter is None else folds[adapter]), slots)
    return WithConstants(plain, plain, made, {k: torch.from_numpy(v.copy()) for k, v in arrays.items()}, [x]).eval()


@pytest.mark.parametrize("method", ["lora", "dora"])
@pytest.mark.parametrize("row", [row for row in ROWS if row.id != "derived weight"])
@torch.no_grad()
def test_constants_give_what_the_adapter_gives(row: Convolution, method: str) -> None:
    model, x = model_of(row, method), row.input().float()
    wanted = model(x)
    scale = max(1.0, float(wanted.abs().max()))
    for max_rank in (None, 9):  # zeros up to it
        found = with_constants(model, x, "default", max_rank)(x)
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5 * scale)
    with model.disable_adapter():
        torch.testing.assert_close(with_constants(model, x, None)(x), model(x), rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize("method", ["first", "dora", "bias", "rslora"])
@torch.no_grad()
def test_a_whole_network_of_every_kind(method: str) -> None:
    model, x = adapted(method), sample()
    torch.testing.assert_close(with_constants(model, x, method)(x), model(x), rtol=0, atol=2e-5)


@torch.no_grad()
def test_a_module_that_shares_the_base_tensor_is_left_alone() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = nn.Conv1d(3, 3, 3, padding=1), nn.Conv1d(3, 3, 3, padding=1)
            self.other.weight = self.one.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.other(torch.tanh(self.one(x)))

    torch.manual_seed(0)
    model = audiolora.adapt(Tied(), targets=["one"], r=2).eval()
    randomise(model)
    x = sample()
    torch.testing.assert_close(with_constants(model, x, "default")(x), model(x), rtol=0, atol=1e-5)


class Normalised(nn.Module):
    """Its own code makes a weight of the convolution's."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(3, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.conv1d(x, self.conv.weight / self.conv.weight.norm())


def test_a_weight_that_something_else_takes_is_refused() -> None:
    model = audiolora.adapt(Normalised(), targets=["conv"], r=2).eval()
    with pytest.raises(ValueError, match=r"conv\.weight: taken by div, .*target='onnx'"):
        with_constants(model, sample(), "default")


def test_an_adapter_of_a_larger_rank_is_refused() -> None:
    model = adapted("rslora")
    with pytest.raises(ValueError, match=r"plain\.weight\.lora_A: \(5, 9\), and the program takes \(4, 9\) at most"):
        with_constants(model, sample(), "rslora", max_rank=4)
