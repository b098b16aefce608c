"""A FactoredWeight against the plain tensor it stands for, in every place a convolution's weight may turn up."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from audiolora.conv.factors import LowRank, adapted_weight
from audiolora.conv.weight import FactoredWeight


def parts(groups: int = 1, k: int = 3, seed: int = 0, dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"W": (6, 4 // groups, k), "A": (2, 4 // groups, k), "B": (6, 2), "m": (6,)}
    return {
        name: torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_(name != "W")
        for name, shape in shapes.items()
    }


def factored(p: dict[str, torch.Tensor], dora: bool = False, dropout_p: float = 0.0) -> FactoredWeight:
    return FactoredWeight.make(p["W"], LowRank(p["A"], p["B"], 0.5), p["m"] if dora else None, dropout_p)


def dense(p: dict[str, torch.Tensor], dora: bool = False) -> torch.Tensor:
    V = p["W"] + 0.5 * torch.einsum("or,rck->ock", p["B"], p["A"])
    return V * (p["m"] / V.detach().flatten(1).norm(dim=1))[:, None, None] if dora else V


def assert_same(y: torch.Tensor, expected: torch.Tensor, leaves: list[torch.Tensor]) -> None:
    torch.testing.assert_close(y, expected, rtol=1e-9, atol=1e-10)
    gradients = torch.autograd.grad(y.square().sum(), leaves)
    for gradient, want in zip(gradients, torch.autograd.grad(expected.square().sum(), leaves), strict=True):
        torch.testing.assert_close(gradient, want, rtol=1e-9, atol=1e-10)


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@settings(max_examples=80)
@given(
    k=st.integers(1, 5),
    length=st.integers(1, 16),
    stride=st.integers(1, 3),
    padding=st.sampled_from([0, 1, 3, (2,), "same", "valid"]),
    dilation=st.integers(1, 3),
    groups=st.sampled_from([1, 2]),
    bias=st.booleans(),
    dora=st.booleans(),
    batched=st.booleans(),
)
def test_conv1d_takes_it_as_any_weight(
    k: int, length: int, stride: int, padding: Any, dilation: int, groups: int, bias: bool, dora: bool, batched: bool
) -> None:
    pad = padding[0] if isinstance(padding, tuple) else padding
    assume(pad == "same" or length + 2 * (0 if pad == "valid" else pad) > dilation * (k - 1))
    stride = 1 if padding == "same" else stride
    p = parts(groups, k)
    shape = (2, 4, length) if batched else (4, length)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True)
    b = torch.arange(6.0, dtype=torch.float64, requires_grad=True) if bias else None
    settings = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    y = F.conv1d(x, factored(p, dora), b, **settings)
    leaves = [x, p["A"], p["B"], *([p["m"]] if dora else []), *([b] if bias else [])]
    assert type(y) is torch.Tensor
    assert_same(y, F.conv1d(x, dense(p, dora), b, **settings), leaves)


@settings(max_examples=60)
@given(
    k=st.integers(1, 5),
    length=st.integers(1, 12),
    stride=st.integers(1, 3),
    padding=st.integers(0, 2),
    output_padding=st.integers(0, 2),
    dilation=st.integers(1, 3),
    groups=st.sampled_from([1, 2]),
    dora=st.booleans(),
    batched=st.booleans(),
)
def test_conv_transpose1d_takes_it_as_any_weight(
    k: int,
    length: int,
    stride: int,
    padding: int,
    output_padding: int,
    dilation: int,
    groups: int,
    dora: bool,
    batched: bool,
) -> None:
    assume(output_padding < max(stride, dilation))
    assume((length - 1) * stride - 2 * padding + dilation * (k - 1) + output_padding + 1 > 0)
    p = parts(groups, k)  # W as a kernel (C_out, C_in/g, k); stored, each group's first two axes change places
    stored = torch.cat([group.transpose(0, 1) for group in p["W"].chunk(groups)])
    term = LowRank(p["A"], p["B"], 0.5, transposed_groups=groups)
    weight = FactoredWeight.make(stored, term, p["m"] if dora else None)
    expected = torch.cat([group.transpose(0, 1) for group in dense(p, dora).chunk(groups)])
    shape = (2, 4, length) if batched else (4, length)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True)
    b = torch.arange(6.0, dtype=torch.float64, requires_grad=True)
    settings = (stride, padding, output_padding, groups, dilation)
    leaves = [x, b, p["A"], p["B"], *([p["m"]] if dora else [])]
    assert_same(F.conv_transpose1d(x, weight, b, *settings), F.conv_transpose1d(x, expected, b, *settings), leaves)
    torch.testing.assert_close(weight * 2, expected * 2)


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize(
    "use",
    [
        lambda W: W * 2,
        lambda W: 2 - W,
        lambda W: W[:, 0],
        lambda W: W.flatten(1) @ W.flatten(1).mT,
        lambda W: torch.cat([W, W], dim=1),
        lambda W: F.linear(torch.ones(1, 12, dtype=W.dtype), W.flatten(1)),
        lambda W: F.conv2d(torch.ones(1, 4, 1, 9, dtype=W.dtype), W.unsqueeze(2)),
        lambda W: F.conv_transpose1d(torch.ones(1, 6, 5, dtype=W.dtype), W),
        lambda W: F.conv1d(W.mT, torch.ones(2, 3, 1, dtype=W.dtype)),
        lambda W: F.conv1d(input=torch.ones(1, 4, 9, dtype=W.dtype), weight=W, padding=1),
        lambda W: W.detach() * W,
        lambda W: torch.stack([W.norm(), W.std(), W.max()]),
    ],
)
def test_every_other_use_sees_the_sum(use: Any, dora: bool) -> None:
    p = parts()
    y = use(factored(p, dora))
    assert type(y) is torch.Tensor
    assert_same(y, use(dense(p, dora)), [p["A"], p["B"], *([p["m"]] if dora else [])])


def test_its_shape_and_dtype_are_the_weight_s() -> None:
    W = factored(parts())
    assert (W.shape, W.dtype, W.device.type, W.ndim, W.dim()) == ((6, 4, 3), torch.float64, "cpu", 3, 3)
    assert (W.numel(), W.size(0), W.is_floating_point(), W.layout) == (72, 6, True, torch.strided)


def test_it_prints_as_the_sum() -> None:
    p = parts()
    assert repr(factored(p)) == repr(dense(p)) or torch.allclose(factored(p) + 0, dense(p))


def test_dropout_needs_the_input() -> None:
    W = factored(parts(), dropout_p=0.5)
    with pytest.raises(ValueError, match="lora_dropout=0.5.*read or transformed first; set lora_dropout=0"):
        W + 0


def test_an_input_of_another_dtype_is_refused_as_torch_does() -> None:
    W = factored(parts(dtype=torch.float32))
    with pytest.raises(TypeError, match=r"input is torch.float64 and the convolution's weight torch.float32"):
        F.conv1d(torch.zeros(1, 4, 9, dtype=torch.float64), W)


def test_adapted_weight_keeps_the_dtype_of_the_base() -> None:
    p = parts()
    W = adapted_weight(p["W"].bfloat16(), LowRank(p["A"].float(), p["B"].float(), 0.5), p["m"].float())
    assert W.dtype == torch.bfloat16
    torch.testing.assert_close(W.double(), dense(p, dora=True), rtol=0.03, atol=0.03)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_under_autocast_dtypes_are_conv1d_s_own_and_numbers_are_near(dora: bool, bias: bool) -> None:
    p = parts(dtype=torch.float32)
    plain = nn.Conv1d(4, 6, 3, bias=bias)
    b = plain.bias
    x = torch.randn(4, 4, 50, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, as_torch = F.conv1d(x, factored(p, dora), b), plain(x)
        loss = y.square().mean()
    assert y.dtype == as_torch.dtype == torch.bfloat16
    leaves = [x, p["A"], p["B"], *([p["m"]] if dora else []), *([b] if bias else [])]
    gradients = torch.autograd.grad(loss, leaves)
    expected = F.conv1d(x, dense(p, dora), b)
    assert (y.float() - expected).norm() < 0.02 * expected.norm()
    for gradient, leaf, want in zip(
        gradients, leaves, torch.autograd.grad(expected.square().mean(), leaves), strict=True
    ):
        assert gradient.dtype == leaf.dtype == torch.float32
        assert (gradient - want).norm() < 0.03 * want.norm()
