"""Every convolution of the contract table, as a network whose adapter is an input: in torch, and as a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoHaConfig, LoraConfig, PeftModel, get_peft_model
from torch import nn

import audiolora
from audiolora.export import export
from audiolora.export.onnx import WithSlots
from audiolora.export.slots import copied, filled, fold, plain_network, slots_of, targets
from tests.export.networks import adapted, randomise, sample
from tests.layers.convolutions import CONVOLUTIONS, METHODS, OF_THEIR_OWN, Convolution

ROWS = [pytest.param(row, id=row.name) for row in (*CONVOLUTIONS, *OF_THEIR_OWN)]
FORMS = ("wsum", "fact")


def model_of(row: Convolution, method: str) -> PeftModel:
    with audiolora.enabled():
        model = get_peft_model(
            row.model().float(), LoraConfig(r=row.r, lora_alpha=2, target_modules=["conv"], **METHODS[method])
        )
    randomise(model)
    return model.eval()


def with_slots(model: nn.Module, form: str, x: torch.Tensor) -> tuple[WithSlots, list[torch.Tensor]]:
    """The network as the graph has it, and the adapter's tensors."""
    twin = copied(model)
    folds = fold(twin, "default")
    plain = plain_network(twin)
    made = targets(plain, [folds])
    values = [torch.from_numpy(value.copy()) for value in filled(slots_of(made), folds).values()]
    owner = WithSlots(plain, plain, made, form).eval()
    if form == "fact":
        owner.choose_beside([x], values)
    return owner, values


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "method", ["lora", "dora", *(pytest.param(method, marks=pytest.mark.slow) for method in ("rslora", "lora_bias"))]
)
@pytest.mark.parametrize("row", ROWS)
@torch.no_grad()
def test_slots_give_what_the_adapter_gives(row: Convolution, method: str, form: str) -> None:
    if method == "lora_bias" and row.name == "no bias":
        pytest.skip("refused: there is no bias to adapt")
    model, x = model_of(row, method), row.input().float()
    wanted = model(x)
    owner, values = with_slots(model, form, x)
    scale = max(1.0, float(wanted.abs().max()))
    torch.testing.assert_close(owner(x, values), wanted, rtol=0, atol=1e-5 * scale)
    zeros = [torch.zeros_like(value) for value in values]
    with model.disable_adapter():
        torch.testing.assert_close(owner(x, zeros), model(x), rtol=0, atol=1e-5 * scale)
    if form == "fact":
        assert bool(owner.beside) == (row.name != "derived weight")
    assert torch.equal(model(x), wanted)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("row", ROWS)
def test_a_bundle_of_each_convolution(row: Convolution, form: str, tmp_path: Path) -> None:
    dynamic = {"x": {0: "batch"}} if row.batched else {}
    made = export(model_of(row, "dora"), tmp_path / "b", {"x": row.input().float()}, form=form, dynamic=dynamic)
    assert max(made.differences.values()) <= 1e-5


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
    for form in FORMS:
        owner, values = with_slots(model, form, sample())
        torch.testing.assert_close(owner(sample(), values), model(sample()), rtol=0, atol=1e-5)


def test_another_method_of_peft_is_a_delta() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.Tanh(), nn.Linear(6, 2))
    model = get_peft_model(net, LoHaConfig(r=2, alpha=3, target_modules=["1", "3"], init_weights=False)).eval()
    x = torch.randn(5, 3, 4)
    owner, values = with_slots(model, "wsum", x)
    assert [slot.name for slot in slots_of(owner.targets)] == ["1.weight.delta", "3.weight.delta"]
    torch.testing.assert_close(owner(x, values), model(x), rtol=0, atol=1e-5)


def test_what_does_not_fold_is_named() -> None:
    from peft import IA3Config

    net: Any = nn.Sequential(nn.Linear(4, 3))
    model = get_peft_model(net, IA3Config(target_modules=["0"], feedforward_modules=[]))
    with pytest.raises(ValueError, match="0: this method over a Linear .* has no update of the weight"):
        fold(copied(model), "default")


def test_the_gain_is_doras_magnitude_over_the_norm() -> None:
    model = adapted("dora")
    layer = model.get_base_model().grouped
    found = fold(copied(model), "dora")["grouped.weight"]
    term, W = layer.term("dora"), layer.base_tensor().double()
    V = W + (term.B.double() @ term.A.double().flatten(1)).view_as(W) * term.scaling
    c = layer.lora_magnitude_vector["dora"].weight.double().flatten() / V.flatten(1).norm(dim=1)
    assert found.gain is not None
    np.testing.assert_allclose((1 + found.gain).numpy(), c.detach().numpy(), rtol=1e-5)
