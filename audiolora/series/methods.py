"""What is trained of a network on a new device: the ways that the recipe compares, each on a copy of the base."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from peft import LoraConfig, get_peft_model
from torch import nn

import audiolora
from audiolora.all_or_nothing import undone_on_error

METHODS = ("head", "bias", "full", "lora", "lora+head+bias", "dora")
ADAPTERS = ("lora", "lora+head+bias", "dora")
"""Those that are an adapter in PEFT's format; the others are a whole network a device."""

LR_FACTOR = {"head": 2.0, "bias": 4.0, "full": 0.5, "lora": 2.0, "lora+head+bias": 1.0, "dora": 2.0}
"""Learning rates beside one another: each method's best by validation (docs/series.md)."""


def prepared(base: nn.Module, method: str, *, r: int = 2, head: str = "head", seed: int = 0) -> nn.Module:
    """A copy of `base` in which what `method` trains requires a gradient, and nothing else does.

    Args:
        base: without adapters; it is not changed.
        method: `"head"`: the module named `head`; `"bias"`: every bias (BitFit, arXiv 2106.10199); `"full"`:
            everything; `"lora"`, `"dora"`: adapters of rank r in every convolution; `"lora+head+bias"`: LoRA, a bias
            beside every convolution that has one, and a head of the device's own.
        r: rank of the adapters.
        head: name of the last module.
        seed: of the adapters' start.

    Returns:
        The copy, a `PeftModel` for the methods in `ADAPTERS`; it computes what `base` does until it is trained.

    Raises:
        ValueError: an unknown method, a base without such a head, without biases or without convolutions.

    Example:
        >>> from audiolora.series.nets import TCNForecaster
        >>> base = TCNForecaster(1, 6, channels=4)
        >>> sum(p.numel() for p in prepared(base, "head").parameters() if p.requires_grad)
        30
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    if "head" in method and head not in dict(base.named_modules()):
        raise ValueError(f"{type(base).__name__} has no module {head!r} to train as its head; name its last layer")
    net = copy.deepcopy(base).requires_grad_(method == "full")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if method in ("lora", "dora"):
            return audiolora.adapt(net, method, r=r, targets="conv")
        if method == "lora+head+bias":
            return _with_head_and_bias(net, r, head)
    trained = {
        "head": lambda: list(net.get_submodule(head).parameters()),
        "bias": lambda: [p for name, p in net.named_parameters() if name.rpartition(".")[2] == "bias"],
        "full": lambda: list(net.parameters()),
    }[method]()
    if not trained:
        raise ValueError(f"{type(net).__name__} has no parameters for method {method!r}; take another method")
    for parameter in trained:
        parameter.requires_grad_(True)
    return net


def _with_head_and_bias(net: nn.Module, r: int, head: str) -> nn.Module:
    config: LoraConfig = audiolora.lora_config(net, r=r, targets="conv")
    config = replace(config, lora_bias=True, modules_to_save=[head])
    audiolora.enable()
    with undone_on_error(net, "default"):
        return get_peft_model(net, config)
