"""Mixed batches past the layer's forward: a weight that is read, a convolution with two places in its model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

import audiolora
from audiolora.conv.batched import PerSampleWeightError


class Reads(nn.Module):
    """Computes with its convolution's weight, as LFM2 does."""

    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        self.conv = nn.Conv1d(4, 4, 3, padding=1)
        self.gain = gain

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.conv.weight if self.gain == 1 else self.conv.weight * self.gain
        return F.conv1d(x, weight, self.conv.bias, padding=1)


class Twice(nn.Module):
    """Calls one module by two names; PEFT finds it by the first."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(4, 4, 3, padding=1)
        self.again = nn.Sequential(nn.ReLU(), self.conv)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.again(self.conv(x))


def adapted(net: nn.Module, **settings: Any) -> PeftModel:
    settings = {"target_modules": ["conv"], "init_lora_weights": False} | settings
    with audiolora.enabled():
        model = get_peft_model(net, LoraConfig(r=2, **settings))
        model.add_adapter("dora", LoraConfig(r=3, **(settings | {"lora_bias": False, "use_dora": True})))
    return model.eval()


X = torch.randn(4, 4, 20, generator=torch.Generator().manual_seed(0))
NAMES = ["dora", "default", "__base__", "dora"]


@pytest.mark.parametrize("settings", [{}, {"lora_bias": True}], ids=["weight", "lora_bias"])
@pytest.mark.parametrize("build", [Reads, Twice])
def test_each_sample_is_by_itself(build: Any, settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = adapted(build(), **settings)
    with torch.no_grad():
        y = model(X, adapter_names=NAMES)
        for i, name in enumerate(NAMES):
            if name == "__base__":
                with model.disable_adapter():
                    expected = model(X[i : i + 1])
            else:
                model.set_adapter(name)
                expected = model(X[i : i + 1])
            torch.testing.assert_close(y[i : i + 1], expected)
        with model.disable_adapter():
            base = model(X)
        torch.testing.assert_close(model(X, adapter_names=["__base__"] * 4), base)


def test_a_derived_weight_says_that_it_cannot() -> None:
    model = adapted(Reads(gain=2.0))
    with pytest.raises(PerSampleWeightError, match="set_adapter"), torch.no_grad():
        model(X, adapter_names=NAMES)
    model.merge_adapter(["default"])
    with pytest.raises(ValueError, match="unmerge_adapter"), torch.no_grad():
        model(X, adapter_names=NAMES)


def test_an_empty_batch() -> None:
    model = adapted(nn.ModuleDict({"conv": nn.Conv1d(4, 6, 3)}))
    assert model.base_model.model["conv"](X[:0], adapter_names=[]).shape == (0, 6, 18)
