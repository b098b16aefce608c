"""One small network for PEFT's features: an ordinary, a grouped and a depthwise convolution, and a head."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

import audiolora
from audiolora.layers.lora import LoraConv1d

CONVOLUTIONS = ("plain", "grouped", "depthwise")
METHODS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "lora_bias": {"lora_bias": True},
    "dora": {"use_dora": True},
}


class Network(nn.Module):
    """(N, 4, L) → (N, L_out, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = nn.Conv1d(4, 6, 3, padding="same", dilation=2)
        self.grouped = nn.Conv1d(6, 8, 5, stride=2, groups=2)
        self.depthwise = nn.Conv1d(8, 8, 3, groups=8, padding=1, padding_mode="circular")
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(x).mT)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return F.gelu(self.depthwise(F.gelu(self.grouped(F.relu(self.plain(x), inplace=True)))))


def base(dtype: torch.dtype = torch.float64) -> Network:
    """The same numbers at each call."""
    torch.manual_seed(0)
    return Network().to(dtype)


def config(**settings: Any) -> LoraConfig:
    return LoraConfig(**{"r": 2, "lora_alpha": 3, "target_modules": list(CONVOLUTIONS), **settings})


def adapted(dtype: torch.dtype = torch.float64, seed: int = 1, **settings: Any) -> PeftModel:
    """Adapted, with factors as after training; in training mode."""
    with audiolora.enabled():
        model = get_peft_model(base(dtype), config(**settings), autocast_adapter_dtype=False)
    randomise(model, seed=seed)
    return model.train()


def randomise(model: nn.Module, adapter: str = "default", seed: int = 1) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name and f".{adapter}." in name:
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.add_(0.3 * noise.to(parameter))


def sample(n: int = 3, length: int = 20, dtype: torch.dtype = torch.float64, seed: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 4, length, generator=generator, dtype=torch.float64).to(dtype)


def layers(model: nn.Module) -> Iterator[tuple[str, LoraConv1d]]:
    """Our layers by their last name."""
    for name, module in model.named_modules():
        if isinstance(module, LoraConv1d):
            yield name.rpartition(".")[2], module


def step(model: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Outputs, and the gradients of what trains by name (without a compiler's or a trainer's prefix)."""
    model.zero_grad()
    y = model(x)
    y.square().sum().backward()
    gradients = {
        name.removeprefix("_orig_mod."): p.grad.clone() for name, p in model.named_parameters() if p.requires_grad
    }
    return y.detach(), gradients


def close(actual: torch.Tensor, expected: torch.Tensor, rtol: float = 1e-9, atol: float = 1e-10) -> None:
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol)


def same_gradients(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], **tolerance: float) -> None:
    assert actual.keys() == expected.keys()
    for name, gradient in expected.items():
        close(actual[name], gradient, **tolerance)
