"""An adapter for each device against each device by itself with its own dense weight, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from audiolora.conv import stacked, stacked_weight
from audiolora.conv.batched import PerSampleWeightError
from audiolora.conv.factors import LowRank, adapted_weight
from audiolora.conv.geometry import ConvGeometry
from audiolora.conv.plan import Path, devices_at_once
from audiolora.conv.stacked import Stack, stacked_conv1d
from audiolora.conv.stacked_weight import StackedBias, StackedWeight


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).requires_grad_()


def expect_equal(y: torch.Tensor, expected: torch.Tensor, leaves: list[torch.Tensor]) -> None:
    torch.testing.assert_close(y, expected, rtol=1e-9, atol=1e-9)
    found = torch.autograd.grad(y.sin().sum(), leaves)
    for gradient, want in zip(found, torch.autograd.grad(expected.sin().sum(), leaves), strict=True):
        torch.testing.assert_close(gradient, want, rtol=1e-8, atol=1e-8)


@settings(max_examples=120, deadline=None)
@given(
    path=st.sampled_from(Path),
    n=st.integers(1, 3),
    m=st.integers(1, 3),
    groups=st.integers(1, 2),
    k=st.integers(1, 4),
    stride=st.integers(1, 2),
    padding=st.integers(0, 2),
    dilation=st.integers(1, 4),
    transposed=st.booleans(),
    dora=st.booleans(),
    bias_dims=st.integers(0, 2),
)
def test_each_device_is_as_by_itself(
    path: Path,
    n: int,
    m: int,
    groups: int,
    k: int,
    stride: int,
    padding: int,
    dilation: int,
    transposed: bool,
    dora: bool,
    bias_dims: int,
) -> None:
    into, out, r = 4 * groups, 6 * groups, 2
    geometry = ConvGeometry(stride, padding, dilation, groups, transposed)
    tg = geometry.transposed_groups
    W = normal(*((into, out // groups, k) if transposed else (out, into // groups, k)), seed=1).detach()
    A, B, x = normal(n, r, into // groups, k, seed=2), normal(n, out, r, seed=3), normal(n * m, into, 15, seed=4)
    magnitude = normal(n, out, seed=5) if dora else None
    bias = [None, normal(out, seed=6), normal(n, out, seed=6)][bias_dims]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stacked, "gradient_path", lambda *_: path)
        y = stacked_conv1d(x, W, bias, Stack(A, B, 0.7, magnitude, tg), geometry)
    alone = []
    for d in range(n):
        weight = adapted_weight(W, LowRank(A[d], B[d], 0.7, tg), None if magnitude is None else magnitude[d])
        b, own = bias if bias is None or bias.dim() == 1 else bias[d], x[d * m : d * m + m]
        if transposed:
            alone.append(F.conv_transpose1d(own, weight, b, stride, padding, 0, groups, dilation))
        else:
            alone.append(F.conv1d(own, weight, b, stride, padding, dilation, groups))
    expect_equal(y, torch.cat(alone), [leaf for leaf in (x, A, B, magnitude, bias) if leaf is not None])


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("path", Path)
def test_a_linear_of_each_device(path: Path, dora: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stacked_weight, "gradient_path", lambda *_: path)
    W, A, B, x = normal(6, 5).detach(), normal(3, 2, 5, seed=1), normal(3, 6, 2, seed=2), normal(6, 4, 5, seed=3)
    magnitude, bias = normal(3, 6, seed=4) if dora else None, normal(3, 6, seed=5)
    weight = StackedWeight.make(W, Stack(A, B, 0.7, magnitude), 6)
    y = F.linear(x, weight, StackedBias.make(torch.zeros(6), bias, 6))
    each = [adapted_weight(W, LowRank(A[d], B[d], 0.7), None if magnitude is None else magnitude[d]) for d in range(3)]
    expected = torch.cat([F.linear(x[2 * d : 2 * d + 2], each[d], bias[d]) for d in range(3)])
    expect_equal(y, expected, [leaf for leaf in (x, A, B, magnitude, bias) if leaf is not None])


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.Conv1d(4, 6, 3, stride=2, groups=2), (6, 4, 9)),
        (nn.ConvTranspose1d(4, 6, 3, stride=2, output_padding=1), (6, 4, 9)),
        (nn.Linear(4, 6), (6, 5, 4)),
        (nn.Linear(4, 6), (6, 4)),
    ],
    ids=["conv", "transposed", "linear", "linear 2-d"],
)
def test_weights_and_biases_of_their_own(module: Any, shape: tuple[int, ...]) -> None:
    module = module.double().requires_grad_(False)
    weights, biases = normal(3, *module.weight.shape, seed=1), normal(3, *module.bias.shape, seed=2)
    x, alone = normal(*shape, seed=3), []
    for d in range(3):
        own = {"weight": weights[d], "bias": biases[d]}
        alone.append(torch.func.functional_call(module, own, (x[2 * d : 2 * d + 2],)))
    tg = 1 if isinstance(module, nn.ConvTranspose1d) else None
    tensors = StackedWeight.make(module.weight, weights, 6, tg), StackedBias.make(module.bias, biases, 6)
    module._parameters.clear()
    module.weight, module.bias = tensors
    expect_equal(module(x), torch.cat(alone), [x, weights, biases])


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.BatchNorm1d(4), (6, 4, 9)),
        (nn.GroupNorm(2, 4), (6, 4, 9)),
        (nn.LayerNorm(4), (6, 5, 4)),
        (nn.Conv1d(4, 4, 3), (6, 4, 9)),
        (nn.Linear(4, 4), (6, 4)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_a_bias_beside_a_shared_weight(module: Any, shape: tuple[int, ...]) -> None:
    module = module.double().eval().requires_grad_(False)
    biases, x, alone = normal(3, 4, seed=2), normal(*shape, seed=3), []
    for d in range(3):
        alone.append(torch.func.functional_call(module, {"bias": biases[d]}, (x[2 * d : 2 * d + 2],)))
    bias = module._parameters.pop("bias")
    module.bias = StackedBias.make(bias, biases, 6)
    expect_equal(module(x), torch.cat(alone), [x, biases])


def test_a_use_without_its_batch_is_noticed() -> None:
    weight = StackedWeight.make(torch.zeros(2, 2, 3), Stack(torch.zeros(3, 1, 2, 3), torch.zeros(3, 2, 1), 1.0), 6)
    with pytest.raises(PerSampleWeightError, match="6 samples of 3 devices"):
        F.conv1d(torch.zeros(3, 2, 5), weight)
    with pytest.raises(PerSampleWeightError, match="not one tensor"):
        weight * 2
    with pytest.raises(PerSampleWeightError, match="not one tensor"):
        StackedBias.make(torch.zeros(2), torch.zeros(3, 2), 6).exp()
    with pytest.raises(ValueError, match="freeze it"):
        stacked_conv1d(
            torch.zeros(3, 2, 5), torch.zeros(2, 2, 3, requires_grad=True), None, weight.stack, ConvGeometry()
        )


def test_autocast_runs_in_its_dtype() -> None:
    stack = Stack(torch.randn(3, 1, 64, 3), torch.randn(3, 64, 1), 1.0)
    conv, linear = (
        StackedWeight.make(torch.randn(64, 64, 3), stack, 6),
        StackedWeight.make(torch.randn(8, 4), torch.randn(3, 8, 4), 6),
    )
    x = torch.randn(6, 64, 9)
    with torch.autocast("cpu", torch.bfloat16):
        y, z = F.conv1d(x, conv, StackedBias.make(torch.zeros(64), torch.randn(3, 64), 6)), F.linear(x[..., :4], linear)
    assert y.dtype == z.dtype == torch.bfloat16
    with pytest.raises(TypeError, match="autocast"):
        F.linear(x.double()[..., :4], linear)


def test_as_many_devices_as_are_fast_together() -> None:
    assert devices_at_once(1, "cpu") == 64
    assert devices_at_once(1 << 30, "cpu") == devices_at_once(1 << 40, "cuda") == 1
    assert devices_at_once(1 << 16, "cuda") > devices_at_once(1 << 16, "cpu")
