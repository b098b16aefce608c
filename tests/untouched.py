"""That a failure changed nothing in a model: its modules, tensors, gradients, hooks, adapters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

import audiolora
from tests.layers.convolutions import old_weight_norm, weight_norm

TARGETS = ["conv1", "conv2", "conv3", "q_proj"]


class Tiny(nn.Module):
    """Convolutions plain and weight-normed, one without a bias, a projection, a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.ModuleDict(
            {
                "conv1": nn.Conv1d(4, 6, 3, padding=1),
                "conv2": old_weight_norm(nn.Conv1d(6, 6, 3, padding=1, groups=2)),
                "conv3": weight_norm(nn.Conv1d(6, 6, 3, padding=1)),
                "bare": nn.Conv1d(6, 6, 1, bias=False),
            }
        )
        self.q_proj, self.norm = nn.Linear(6, 6), nn.LayerNorm(6)
        self.norm.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for conv in self.encoder.values():
            x = torch.relu(conv(x))
        return self.q_proj(self.norm(x.mT))


def tiny() -> Tiny:
    torch.manual_seed(0)
    return Tiny().eval()


def sample() -> torch.Tensor:
    return torch.randn(2, 4, 12, generator=torch.Generator().manual_seed(1))


def adapted(**settings: Any) -> PeftModel:
    with audiolora.enabled():
        model = get_peft_model(tiny(), LoraConfig(**{"r": 2, "target_modules": TARGETS, **settings})).eval()
    randomise(model)
    return model


def randomise(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))


def everything(model: nn.Module) -> dict[str, Any]:
    """All that a failure may not change; what it holds is compared by `same`."""
    modules = dict(model.named_modules())
    return {
        "modules": {name: (id(module), type(module).__qualname__) for name, module in modules.items()},
        "tensors": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "trained": {name: (id(p), p.requires_grad) for name, p in model.named_parameters()},
        "modes": {name: module.training for name, module in modules.items()},
        "hooks": {name: (len(m._forward_hooks), len(m._forward_pre_hooks)) for name, m in modules.items()},
        "adapters": list(getattr(model, "peft_config", {})),
        "has_config": "peft_config" in vars(model),
        "active": {name: m.active_adapters for name, m in modules.items() if hasattr(m, "lora_A")},
        "merged": {name: list(m.merged_adapters) for name, m in modules.items() if hasattr(m, "lora_A")},
    }


def same(model: nn.Module, before: dict[str, Any]) -> None:
    after = everything(model)
    tensors, kept = after.pop("tensors"), dict(before)
    wanted = kept.pop("tensors")
    assert after == kept
    assert list(tensors) == list(wanted)
    assert [name for name in wanted if not torch.equal(bits(tensors[name]), bits(wanted[name]))] == []


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().flatten().view(torch.uint8)


def refused(model: nn.Module, call: Callable[[], Any], *named: str, error: type[Exception] = ValueError) -> str:
    """The one error, in which each of ``named`` stands; the model is untouched by it."""
    y, before = model(sample()), everything(model)  # the first forward takes participation's hooks off
    with pytest.raises(error) as raised:
        call()
    said = str(raised.value)
    assert [part for part in named if part not in said] == [], said
    same(model, before)
    assert torch.equal(model(sample()), y)
    return said
