"""A generated fleet and networks small enough to train in a test."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

import audiolora
from audiolora.series.forecaster import Forecaster
from audiolora.series.nets import TCNForecaster

LOOKBACK, HORIZON, SEASON = 48, 6, 24


def fleet(devices: int = 2, steps: int = 24 * 14, seed: int = 0) -> pd.DataFrame:
    """Hourly daily waves of their own level, size and phase, in noise."""
    rng, t, parts = np.random.default_rng(seed), np.arange(steps), []
    for i in range(devices):
        wave = 20 * (i + 1) + (3 + i) * np.sin(2 * np.pi * t / 24 + rng.uniform(0, 6))
        y = wave + 0.3 * rng.standard_normal(steps)
        ds = pd.date_range("2024-01-01", periods=steps, freq="h")
        parts.append(pd.DataFrame({"unique_id": f"pump{i}", "ds": ds, "y": y}))
    return pd.concat(parts, ignore_index=True)


def tiny_net(channels: int = 1, quantiles: int = 0, seed: int = 0, **settings: float) -> TCNForecaster:
    torch.manual_seed(seed)
    return TCNForecaster(channels, HORIZON, quantiles=quantiles, channels=6, dilations=(1, 4), **settings)


def adapted(net: nn.Module, seed: int = 0) -> PeftModel:
    """LoRA of rank 1 and a bias beside every block's convolutions, and a head of its own."""
    torch.manual_seed(seed)
    config = LoraConfig(r=1, target_modules=["conv1", "conv2"], lora_bias=True, modules_to_save=["head"])
    with audiolora.enabled():
        return get_peft_model(net, config)


def forecaster(net: nn.Module | None = None, **settings: object) -> Forecaster:
    return Forecaster(net or tiny_net(), LOOKBACK, HORIZON, **{"freq": "h", **settings})  # type: ignore[arg-type]
