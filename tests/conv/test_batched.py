"""A batch of many adapters against each sample by itself with its own dense weight, in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from audiolora.conv.batched import Adapter, BatchedWeight, PerSampleWeightError
from audiolora.conv.factors import LowRank, adapted_weight
from audiolora.conv.geometry import ConvGeometry


def draw_adapter(out: int, in_per_group: int, k: int, r: int, kind: str, tg: int | None, seed: int) -> Adapter | None:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()

    if kind == "base":
        return None
    term = LowRank(normal(r, in_per_group, k), normal(out, r), 0.3 + 0.1 * seed, tg)
    return Adapter(term, normal(out) if kind == "dora" else None, normal(out) if kind == "bias" else None)


def leaves_of(adapters: list[Adapter | None]) -> list[torch.Tensor]:
    parts = [(a.term.A, a.term.B, a.magnitude, a.bias) for a in adapters if a is not None]
    return [tensor for each in parts for tensor in each if tensor is not None]


def one_by_one(
    x: torch.Tensor, W: torch.Tensor, bias: torch.Tensor, each: list[Adapter | None], g: ConvGeometry
) -> torch.Tensor:
    results = []
    for sample, adapter in zip(x, each, strict=True):
        weight = W if adapter is None else adapted_weight(W, adapter.term, adapter.magnitude)
        b = bias if adapter is None or adapter.bias is None else bias + adapter.bias
        if g.transposed:
            y = F.conv_transpose1d(sample[None], weight, b, g.stride, g.padding, 0, g.groups, g.dilation)
        else:
            y = F.conv1d(sample[None], weight, b, g.stride, g.padding, g.dilation, g.groups)
        results.append(y)
    return torch.cat(results)


@settings(max_examples=80, deadline=None)
@given(
    kinds=st.lists(st.sampled_from(["lora", "dora", "bias", "base"]), min_size=1, max_size=4),
    which=st.lists(st.integers(0, 3), min_size=1, max_size=5),
    ranks=st.lists(st.integers(1, 3), min_size=4, max_size=4),
    channels=st.sampled_from([(1, 1), (2, 3), (40, 24)]),
    groups=st.integers(1, 3),
    k=st.integers(1, 4),
    stride=st.integers(1, 2),
    dilation=st.integers(1, 2),
    transposed=st.booleans(),
)
def test_each_sample_is_as_by_itself(
    kinds: list[str],
    which: list[int],
    ranks: list[int],
    channels: tuple[int, int],
    groups: int,
    k: int,
    stride: int,
    dilation: int,
    transposed: bool,
) -> None:
    assume(any(kind != "base" for kind in kinds))
    into, out = channels
    geometry = ConvGeometry(stride, 1, dilation, groups, transposed)
    tg = groups if transposed else None
    adapters = [draw_adapter(out * groups, into, k, ranks[i], kind, tg, i) for i, kind in enumerate(kinds)]
    which = [i % len(adapters) for i in which]
    generator = torch.Generator().manual_seed(9)
    W_shape = (into * groups, out, k) if transposed else (out * groups, into, k)
    W = torch.randn(W_shape, generator=generator, dtype=torch.float64)
    x = torch.randn(len(which), into * groups, 9, generator=generator, dtype=torch.float64).requires_grad_()
    bias = torch.randn(out * groups, generator=generator, dtype=torch.float64)

    y = BatchedWeight.make(W, adapters, which).convolve(x, bias, geometry)
    expected = one_by_one(x, W, bias, [adapters[i] for i in which], geometry)
    torch.testing.assert_close(y, expected, rtol=1e-9, atol=1e-9)
    leaves = [x, *leaves_of(adapters)]
    wanted = torch.autograd.grad(expected.sin().sum(), leaves, allow_unused=True, materialize_grads=True)
    found = torch.autograd.grad(y.sin().sum(), leaves, allow_unused=True, materialize_grads=True)
    for gradient, want in zip(found, wanted, strict=True):
        torch.testing.assert_close(gradient, want, rtol=1e-8, atol=1e-8)
    with torch.no_grad():
        torch.testing.assert_close(BatchedWeight.make(W, adapters, which).convolve(x, bias, geometry), expected)


def test_a_use_without_its_batch_is_noticed() -> None:
    weight = BatchedWeight.make(torch.zeros(2, 2, 3), [draw_adapter(2, 2, 3, 1, "lora", None, 0)], [0, 0])
    with pytest.raises(PerSampleWeightError, match="2 samples have an adapter each, the batch is 3"):
        F.conv1d(torch.zeros(3, 2, 5), weight)
    with pytest.raises(PerSampleWeightError, match="not one tensor"):
        weight * 2
