"""Who else runs a layer: torch.func's transforms, and DataParallel's replicas."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from torch.func import functional_call, grad, vmap

import audiolora

METHODS = [pytest.param({}, id="lora"), pytest.param({"use_dora": True}, id="dora")]
X = torch.randn(3, 4, 12, generator=torch.Generator().manual_seed(0))


def adapted(**settings: Any) -> PeftModel:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv1d(4, 6, 3, groups=2), nn.GELU(), nn.ConvTranspose1d(6, 4, 4, stride=2))
    config = LoraConfig(r=2, target_modules=["0", "2"], init_lora_weights=False, **settings)
    with audiolora.enabled():
        return get_peft_model(net, config)


@pytest.mark.parametrize("settings", METHODS)
def test_gradients_of_each_sample_by_torch_func(settings: dict[str, Any]) -> None:
    model = adapted(**settings)
    factors = {name: p for name, p in model.named_parameters() if p.requires_grad}

    def loss(factors: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        return functional_call(model, factors, (x[None],)).square().sum()

    each = vmap(grad(loss), (None, 0))({name: p.detach() for name, p in factors.items()}, X)
    for i, x in enumerate(X):
        expected = torch.autograd.grad(model(x[None]).square().sum(), list(factors.values()))
        for name, gradient in zip(factors, expected, strict=True):
            torch.testing.assert_close(each[name][i], gradient, rtol=1e-4, atol=1e-4)


def replica(module: nn.Module, change: Any) -> nn.Module:
    """As ``torch.nn.parallel.replicate`` makes them, which wants a GPU: parameters become tensors of the replica's."""
    made = module._replicate_for_data_parallel()
    for name, child in module._modules.items():
        made._modules[name] = None if child is None else replica(child, change)
    for name, parameter in module._parameters.items():
        if parameter is not None:
            setattr(made, name, change(parameter))
    return made


@pytest.mark.parametrize("settings", METHODS)
def test_a_replica_has_factors_of_its_own(settings: dict[str, Any]) -> None:
    model = adapted(**settings)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.5)
    made = replica(model, lambda parameter: parameter * 1.5)
    y = made(X)
    torch.testing.assert_close(y, other(X))
    y.sum().backward()
    other(X).sum().backward()
    for (name, p), q in zip(model.named_parameters(), other.parameters(), strict=True):
        if p.requires_grad:
            torch.testing.assert_close(p.grad, 1.5 * q.grad, rtol=1e-4, atol=1e-4, msg=name)
    torch.testing.assert_close(model(X), adapted(**settings)(X))
