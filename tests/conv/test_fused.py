"""The operator's output and every gradient, against torch's autograd through torch's convolution with m·V/‖V‖."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from audiolora.conv.beside import BesideLowRankConv1d, holds_less
from audiolora.conv.factors import LowRank
from audiolora.conv.fused import FusedLowRankConv1d, fused_conv1d
from audiolora.conv.geometry import ConvGeometry
from audiolora.conv.plan import Path

SCALING = 0.6
Way = Path | Literal["beside"]
WAYS: tuple[Way, ...] = (*Path, "beside")
"""To the gradients; beside the base's is for one group."""


@dataclass
class Operands:
    """Leaves of the operator, and its geometry."""

    x: torch.Tensor
    W: torch.Tensor
    bias: torch.Tensor | None
    A: torch.Tensor
    B: torch.Tensor
    m: torch.Tensor | None
    geometry: ConvGeometry

    def leaves(self) -> dict[str, torch.Tensor]:
        named = {"x": self.x, "bias": self.bias, "A": self.A, "B": self.B, "m": self.m}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def fused(self, path: Way | None = None) -> torch.Tensor:
        """By the path that the plan takes, or by a given one."""
        if path is None:
            return fused_conv1d(self.x, self.W, self.bias, LowRank(self.A, self.B, SCALING), self.geometry, self.m)
        parts = (self.x, self.W, self.bias, self.A, self.B, self.m, SCALING, self.geometry)
        return BesideLowRankConv1d.apply(*parts) if path == "beside" else FusedLowRankConv1d.apply(*parts, path)

    def dense(self) -> torch.Tensor:
        g = self.geometry
        kernel = in_conv1d_s_order(self.W, g) + SCALING * torch.einsum("or,rck->ock", self.B, self.A)
        if self.m is not None:
            kernel = kernel * (self.m / kernel.detach().square().sum((1, 2)).sqrt())[:, None, None]
        if g.transposed:
            W = in_conv_transpose1d_s_order(kernel, g)
            return F.conv_transpose1d(self.x, W, self.bias, g.stride, g.padding, g.output_padding, g.groups, g.dilation)
        return F.conv1d(self.x, kernel, self.bias, g.stride, g.padding, g.dilation, g.groups)


def in_conv_transpose1d_s_order(kernel: torch.Tensor, g: ConvGeometry) -> torch.Tensor:
    """(C_out, C_in/g, k) → (C_in, C_out/g, k), one group after the other."""
    return torch.cat([group.transpose(0, 1) for group in kernel.chunk(g.groups)])


def in_conv1d_s_order(W: torch.Tensor, g: ConvGeometry) -> torch.Tensor:
    """The way back, for a transposed convolution's weight."""
    return in_conv_transpose1d_s_order(W, g) if g.transposed else W


def draw(
    n: int = 2,
    in_per_group: int = 3,
    out_per_group: int = 2,
    length: int = 13,
    k: int = 3,
    r: int = 2,
    geometry: ConvGeometry | None = None,
    bias: bool = True,
    dora: bool = False,
    seed: int = 0,
) -> Operands:
    generator = torch.Generator().manual_seed(seed)
    geometry = geometry or ConvGeometry()

    def normal(*shape: int, leaf: bool = True) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_(leaf)

    out = out_per_group * geometry.groups
    stored = (in_per_group * geometry.groups, out_per_group, k) if geometry.transposed else (out, in_per_group, k)
    return Operands(
        x=normal(n, in_per_group * geometry.groups, length),
        W=normal(*stored, leaf=False),
        bias=normal(out) if bias else None,
        A=normal(r, in_per_group, k),
        B=normal(out, r),
        m=normal(out) if dora else None,
        geometry=geometry,
    )


def assert_same_output_and_gradients(operands: Operands, path: Way | None = None) -> None:
    y, expected = operands.fused(path), operands.dense()
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-10)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(9), dtype=y.dtype)
    leaves = list(operands.leaves().values())
    gradients, wanted = torch.autograd.grad(y, leaves, dy), torch.autograd.grad(expected, leaves, dy)
    for name, gradient, want in zip(operands.leaves(), gradients, wanted, strict=True):
        torch.testing.assert_close(gradient, want, rtol=1e-9, atol=1e-9, msg=lambda text, name=name: f"∂{name}: {text}")


@settings(max_examples=250)
@given(
    n=st.integers(1, 3),
    in_per_group=st.integers(1, 4),
    out_per_group=st.integers(1, 3),
    length=st.integers(1, 40),
    k=st.integers(1, 7),
    r=st.integers(1, 6),
    stride=st.integers(1, 5),
    padding=st.integers(0, 8),
    dilation=st.integers(1, 4),
    groups=st.integers(1, 4),
    transposed=st.booleans(),
    output_padding=st.integers(0, 4),
    bias=st.booleans(),
    dora=st.booleans(),
    path=st.sampled_from(WAYS),
    seed=st.integers(0, 5),
)
def test_any_geometry(
    n: int,
    in_per_group: int,
    out_per_group: int,
    length: int,
    k: int,
    r: int,
    stride: int,
    padding: int,
    dilation: int,
    groups: int,
    transposed: bool,
    output_padding: int,
    bias: bool,
    dora: bool,
    path: Way,
    seed: int,
) -> None:
    assume(not transposed or output_padding < max(stride, dilation))
    groups = 1 if path == "beside" else groups
    geometry = ConvGeometry(stride, padding, dilation, groups, transposed, output_padding if transposed else 0)
    assume(geometry.output_length(length, k) > 0)
    assume(transposed or length + 2 * padding > dilation * (k - 1))
    operands = draw(n, in_per_group, out_per_group, length, k, r, geometry, bias=bias, dora=dora, seed=seed)
    assert_same_output_and_gradients(operands, path)


@pytest.mark.parametrize("path", WAYS)
@pytest.mark.parametrize(
    "geometry, in_per_group",
    [
        (ConvGeometry(), 2),
        (ConvGeometry(stride=2, padding=1), 2),
        (ConvGeometry(padding=2, dilation=2, groups=2), 2),
        (ConvGeometry(stride=3, padding=1, groups=3), 1),
        (ConvGeometry(stride=2, padding=1, groups=2, transposed=True, output_padding=1), 2),
    ],
    ids=["plain", "stride", "dilation and groups", "depthwise", "transposed"],
)
def test_gradcheck(geometry: ConvGeometry, in_per_group: int, path: Way) -> None:
    """LoRA alone: DoRA holds its norm constant in backward, which is not the derivative on purpose."""
    if path == "beside":
        geometry = replace(geometry, groups=1)
    o = draw(1, in_per_group, 1, length=7, k=3, r=2, geometry=geometry)

    def operator(*leaves: torch.Tensor) -> torch.Tensor:
        named = dict(zip(o.leaves(), leaves, strict=True))
        return Operands(**named, m=None, W=o.W, geometry=geometry).fused(path)

    assert torch.autograd.gradcheck(operator, tuple(o.leaves().values()))


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("wanted", ["x", "bias", "A", "B"])
@pytest.mark.parametrize("path", WAYS)
def test_one_gradient_alone(path: Way, wanted: str, dora: bool) -> None:
    """What nobody asked for is not computed, and what is asked for does not depend on it."""
    operands = draw(geometry=ConvGeometry(stride=2, padding=1, groups=1 if path == "beside" else 2), dora=dora)
    for name, tensor in operands.leaves().items():
        tensor.requires_grad_(name == wanted)
    (gradient,) = torch.autograd.grad(operands.fused(path).sin().sum(), operands.leaves()[wanted])
    (expected,) = torch.autograd.grad(operands.dense().sin().sum(), operands.leaves()[wanted])
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("path", [*WAYS, None])
def test_an_activation_may_overwrite_the_result(path: Way | None, dora: bool) -> None:
    operands = draw(dora=dora)
    leaves = list(operands.leaves().values())
    gradients = torch.autograd.grad(F.relu(operands.fused(path), inplace=True).sum(), leaves)
    expected = torch.autograd.grad(F.relu(operands.dense()).sum(), leaves)
    for gradient, want in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, want)


@pytest.mark.parametrize("path", [*WAYS, None])
def test_an_input_overwritten_after_use_is_noticed(path: Way | None) -> None:
    operands = draw()
    x = operands.x.clone()
    operands.x = x
    y = operands.fused(path)
    x.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("path", [*WAYS, None])
def test_a_batch_of_none(path: Way | None) -> None:
    assert_same_output_and_gradients(draw(n=0, geometry=ConvGeometry(groups=1 if path == "beside" else 2)), path)


class Recording(torch.utils._python_dispatch.TorchDispatchMode):
    """The shapes of all tensors that are made."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[torch.Size] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        self.shapes.extend(t.shape for t in torch.utils._pytree.tree_leaves(result) if isinstance(t, torch.Tensor))
        return result


def test_no_dense_weight_gradient_is_formed() -> None:
    """The point of it: with k = 128 the largest tensor that backward makes is smaller than W by far."""
    operands = draw(n=1, in_per_group=16, out_per_group=16, length=4, k=128, r=1, geometry=ConvGeometry(padding=64))
    y = operands.fused()
    with Recording() as made:
        y.sum().backward()
    assert made.shapes and operands.W.shape not in made.shapes
    assert max(shape.numel() for shape in made.shapes) < operands.W.numel()


def test_a_large_weight_is_not_formed_beside_a_short_input() -> None:
    """In the step of a frozen convolution nothing is as large as W; nor is it here."""
    o = draw(n=1, in_per_group=64, out_per_group=64, length=16, k=5, r=2, geometry=ConvGeometry(padding=2))
    x, W, A, B = (t.detach().float() for t in (o.x, o.W, o.A, o.B))
    assert holds_less(x, W, 2, o.geometry)
    with Recording() as made:
        y = fused_conv1d(x.requires_grad_(), W, None, LowRank(A.requires_grad_(), B, SCALING), o.geometry)
        y.sum().backward()
    assert max(shape.numel() for shape in made.shapes) < W.numel()


def test_a_weight_that_wants_a_gradient_is_refused() -> None:
    operands = draw()
    operands.W.requires_grad_()
    with pytest.raises(ValueError, match="requires a gradient, which the fused operator does not give; freeze it"):
        operands.fused()


@pytest.mark.parametrize("path", WAYS)
def test_a_second_derivative_is_refused_not_wrong(path: Way) -> None:
    operands = draw()
    (dx,) = torch.autograd.grad(operands.fused(path).square().sum(), operands.x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dx.sum().backward()


@pytest.mark.parametrize("autocast", [False, True], ids=["bf16 tensors", "inside autocast"])
@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_bf16_is_near_float64_and_factors_keep_their_dtype(dora: bool, autocast: bool) -> None:
    exact = draw(n=4, in_per_group=8, length=40, geometry=ConvGeometry(padding=1), dora=dora)
    low = Operands(
        x=exact.x.detach().bfloat16().requires_grad_(),
        W=exact.W.float(),
        bias=exact.bias.detach().bfloat16().requires_grad_(),
        A=exact.A.detach().float().requires_grad_(),
        B=exact.B.detach().float().requires_grad_(),
        m=None if exact.m is None else exact.m.detach().float().requires_grad_(),
        geometry=exact.geometry,
    )
    y, expected = low.fused(), exact.dense()
    assert y.dtype == torch.bfloat16
    with torch.autocast("cpu", dtype=torch.bfloat16) if autocast else contextlib.nullcontext():
        y.float().square().mean().backward()
    expected.square().mean().backward()
    assert relative_error(y, expected) < 0.02
    for name, leaf in low.leaves().items():
        assert leaf.grad.dtype == leaf.dtype
        assert relative_error(leaf.grad, exact.leaves()[name].grad) < 0.03, name


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("path", WAYS)
def test_a_backward_inside_autocast_keeps_its_own_precision(path: Way, dora: bool) -> None:
    exact = draw(n=4, in_per_group=8, length=40, geometry=ConvGeometry(padding=1), dora=dora)
    low = Operands(
        *(None if t is None else t.detach().float() for t in (exact.x, exact.W, exact.bias, exact.A, exact.B, exact.m)),
        geometry=exact.geometry,
    )
    for leaf in low.leaves().values():
        leaf.requires_grad_()
    y = low.fused(path)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y.square().mean().backward()
    exact.dense().square().mean().backward()
    for name, leaf in low.leaves().items():
        assert relative_error(leaf.grad, exact.leaves()[name].grad) < 1e-5, name


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return ((actual.double() - expected).norm() / expected.norm()).item()
