"""A causal network with a depthwise, a weight-normed and a grouped convolution, with LoRA and DoRA, as a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

import audiolora
from audiolora.export import export
from tests.export.networks import randomise
from tests.series.causal_networks import CausalConv1d, ChannelNorm, Chomp, weight_norm

CHANNELS = 3
ADAPTERS: dict[str, dict[str, Any]] = {"plain": {"r": 2, "lora_bias": True}, "dora": {"r": 3, "use_dora": True}}


def causal_network() -> nn.Module:
    """(N, 3, L) → (N, 2, L); reads 18 steps back."""
    return nn.Sequential(
        weight_norm(nn.Conv1d(CHANNELS, 8, 3, padding=4, dilation=2)),
        Chomp(4),
        nn.GELU(),
        ChannelNorm(8),
        CausalConv1d(8, 8, 5, groups=8),
        nn.ReLU(),
        CausalConv1d(8, 8, 4, dilation=3, groups=2),
        nn.Conv1d(8, 2, 1),
    )


def adapted(net: nn.Module) -> PeftModel:
    """With an adapter of each kind over every convolution, as after training."""
    model: Any = net.eval()
    convolutions = [name for name, m in net.named_modules() if isinstance(m, (nn.Conv1d, nn.ConvTranspose1d))]
    with audiolora.enabled():
        for name, settings in ADAPTERS.items():
            config = LoraConfig(**settings, target_modules=convolutions)
            if isinstance(model, PeftModel):
                model.add_adapter(name, config)
            else:
                model = get_peft_model(model, config, adapter_name=name)
    randomise(model)
    return model.eval()


def model() -> PeftModel:
    """The same numbers at each call."""
    torch.manual_seed(0)
    return adapted(causal_network())


def write_bundle(folder: Path, **settings: Any) -> Path:
    export(model(), folder, torch.randn(2, CHANNELS, 20), streaming=True, **settings)
    return folder


@torch.no_grad()
def offline(net: PeftModel, x: np.ndarray, adapter: str | None) -> np.ndarray:
    """The network on all of x at once, in torch."""
    given = torch.from_numpy(x)
    if adapter is None:
        with net.disable_adapter():
            return net(given).numpy()
    net.set_adapter(adapter)
    return net(given).numpy()


def numbers(*shape: int, seed: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def split(x: np.ndarray, sizes: list[int]) -> list[np.ndarray]:
    """Chunks of these numbers of steps."""
    return np.split(x, np.cumsum(sizes)[:-1], axis=-1)
