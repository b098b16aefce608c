"""AdaLoRA in a bundle: low-rank, of the singular values that its budget left, and of no others."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import AdaLoraConfig, PeftModel, get_peft_model
from torch import nn

import audiolora
from audiolora.export.slots import copied, fold
from tests.export.test_geometries import FORMS, with_slots
from tests.layers.convolutions import CONVOLUTIONS, OF_THEIR_OWN, Convolution

ROWS = [pytest.param(row, id=row.name) for row in (*CONVOLUTIONS, *OF_THEIR_OWN)]


def masked(net: nn.Module, targets: list[str]) -> PeftModel:
    """As after training: the second singular value of each module is zero."""
    settings = AdaLoraConfig(init_r=3, target_r=2, lora_alpha=2, total_step=4, target_modules=targets)
    with audiolora.enabled():
        model = get_peft_model(net.float(), settings)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(0.4 * torch.randn(parameter.shape, generator=generator))
            if ".lora_E." in name:
                parameter[1] = 0
    return model.eval()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("row", ROWS)
@torch.no_grad()
def test_slots_give_what_the_adapter_gives(row: Convolution, form: str) -> None:
    model, x = masked(row.model(), ["conv"]), row.input().float()
    wanted = model(x)
    owner, values = with_slots(model, form, x)
    torch.testing.assert_close(owner(x, values), wanted, rtol=0, atol=1e-5 * max(1.0, float(wanted.abs().max())))


def test_masked_values_are_dropped_and_none_left_is_one_of_zeros() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv1d(4, 6, 3, groups=2), nn.Flatten(), nn.Linear(36, 5))
    model: Any = masked(net, ["0", "2"])
    with torch.no_grad():
        model.base_model.model[2].lora_E["default"].zero_()
    x = torch.randn(2, 4, 8)
    folds = fold(copied(model), "default")
    shapes = {name: (tuple(each.A.shape), tuple(each.B.shape)) for name, each in folds.items() if each.A is not None}
    assert shapes == {"0.weight": ((2, 6), (6, 2)), "2.weight": ((1, 36), (5, 1))}
    assert not folds["2.weight"].B.any() and folds["0.weight"].delta is None
    owner, values = with_slots(model, "wsum", x)
    torch.testing.assert_close(owner(x, values), model(x), rtol=0, atol=1e-5)
