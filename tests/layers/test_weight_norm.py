"""Old-style weight norm turned into the parametrization and back: the same numbers, names and objects."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, spectral_norm
from torch.nn.utils.weight_norm import WeightNorm

from audiolora.layers.weight_norm import modernise_weight_norm, restore_old_weight_norm
from tests.layers.convolutions import old_weight_norm, weight_norm


def normed(dim: int | None = 0) -> nn.Conv1d:
    torch.manual_seed(0)
    return old_weight_norm(nn.Conv1d(4, 6, 3), dim=dim)


@pytest.mark.parametrize("trains", [True, False], ids=["trainable", "frozen"])
@pytest.mark.parametrize("dim", [0, 1, 2, -1, None], ids=str)
def test_there_and_back_is_bit_for_bit(dim: int | None, trains: bool) -> None:
    conv, x = normed(dim).requires_grad_(trains), torch.randn(2, 4, 9)
    y, g, v = conv(x), conv.weight_g, conv.weight_v
    before = {name: tensor.clone() for name, tensor in conv.state_dict().items()}

    assert modernise_weight_norm(conv)
    assert parametrize.type_before_parametrizations(conv) is nn.Conv1d and not conv._forward_pre_hooks
    chain: Any = conv.parametrizations.weight
    assert chain.original0 is g and chain.original1 is v
    torch.testing.assert_close(conv(x), y)

    restore_old_weight_norm(conv)
    assert type(conv) is nn.Conv1d
    assert conv.weight_g is g and conv.weight_v is v and g.requires_grad is v.requires_grad is trains
    assert {name: tensor.tolist() for name, tensor in conv.state_dict().items()} == {
        name: tensor.tolist() for name, tensor in before.items()
    }
    assert list(conv.state_dict()) == list(before)
    assert torch.equal(conv(x), y)
    (hook,) = conv._forward_pre_hooks.values()
    assert isinstance(hook, WeightNorm)


def test_what_has_no_old_weight_norm_is_left_alone() -> None:
    for conv in (nn.Conv1d(4, 6, 3), weight_norm(nn.Conv1d(4, 6, 3)), spectral_norm(nn.Conv1d(4, 6, 3))):
        hooks, keys = list(conv._forward_pre_hooks.values()), list(conv.state_dict())
        assert not modernise_weight_norm(conv)
        assert list(conv._forward_pre_hooks.values()) == hooks and list(conv.state_dict()) == keys


def test_other_hooks_stay() -> None:
    conv, seen = normed(), []
    conv.register_forward_pre_hook(lambda module, args: seen.append("called"))
    modernise_weight_norm(conv)
    restore_old_weight_norm(conv)
    conv(torch.randn(1, 4, 9))
    assert seen == ["called"]
