"""A network with every kind of convolution that a graph must take, and an adapter of every method over it."""

from __future__ import annotations

import warnings
from typing import Any

import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from torch.nn.utils import parametrizations

import audiolora

TARGETS = ["plain", "normed", "old", "grouped", "depthwise", "up", "causal", "linear"]
METHODS: dict[str, dict[str, Any]] = {
    "first": {"modules_to_save": ["head"]},
    "dora": {"use_dora": True},
    "bias": {"lora_bias": True},
    "rslora": {"use_rslora": True, "rank_pattern": {"plain": 5}, "target_modules": ["plain", "up"]},
}


class Causal(nn.Conv1d):
    """Pads on the left, in its forward."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(F.pad(input, ((self.kernel_size[0] - 1) * self.dilation[0], 0)))


class Everything(nn.Module):
    """(N, 3, L) → (N, 5)."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = nn.Conv1d(3, 8, 3, padding="same", dilation=2)
        self.normed = parametrizations.weight_norm(nn.Conv1d(8, 8, 3, padding=1))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            self.old = torch.nn.utils.weight_norm(nn.Conv1d(8, 8, 1))
        self.grouped = nn.Conv1d(8, 8, 5, stride=2, groups=2)
        self.depthwise = nn.Conv1d(8, 8, 3, groups=8, padding=1, padding_mode="circular")
        self.up = nn.ConvTranspose1d(8, 6, 4, stride=2, groups=2)
        self.causal = Causal(6, 6, 3, dilation=2)
        self.norm = nn.BatchNorm1d(6)
        self.linear = nn.Linear(6, 6)
        self.head = nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.gelu(self.old(F.relu(self.normed(F.relu(self.plain(x), inplace=True)))))
        x = self.norm(self.causal(self.up(F.gelu(self.depthwise(self.grouped(x))))))
        return self.head(torch.tanh(self.linear(x.mean(-1))))


def everything() -> Everything:
    """The same numbers at each call."""
    torch.manual_seed(0)
    return Everything()


def adapted(*methods: str) -> PeftModel:
    """An adapter for each of these methods, with factors as after training."""
    model: Any = everything()
    with audiolora.enabled():
        for method in methods or METHODS:
            config = LoraConfig(**{"r": 2, "lora_alpha": 3, "target_modules": TARGETS, **METHODS[method]})
            if isinstance(model, PeftModel):
                model.add_adapter(method, config)
            else:
                model = get_peft_model(model, config, adapter_name=method)
    randomise(model)
    return model.eval()


def randomise(model: nn.Module, seed: int = 1) -> None:
    """Factors and heads as after training."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name or ".modules_to_save." in name:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))


def sample(n: int = 2, length: int = 40) -> torch.Tensor:
    return torch.randn(n, 3, length, generator=torch.Generator().manual_seed(2))
