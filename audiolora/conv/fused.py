"""The fused operator: y = conv(x, W') + bias with W' = c · (W + s·B·A), and a backward to the factors alone.

Forward: the adapted weight once, then one convolution. Backward:

    ∂x = convᵀ(∂y, W')             one transposed convolution, as in the frozen layer
    z  = A ∗ x                     r channels
    ∂B = s · c∂y · zᵀ              ∂z = s · (cB)ᵀ · ∂y            ∂A = correlation of x with ∂z
    ∂c = Σ ∂y · conv(x, V)         DoRA only, V = W + s·B·A, from the saved product: no second convolution

That never forms the dense ∂W (C_out, C_in/g, k), which costs as much as full fine-tuning; where r is not small against
the channels it is the cheaper way all the same, and `conv.plan` takes it. PEFT's alternative, a side branch B(A(x)),
runs two more convolutions forward and four backward.
"""

from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable

from audiolora.conv.beside import BesideLowRankConv1d, holds_less
from audiolora.conv.factors import LowRank, adapted_weight, as_kernel, inverse_norm, lora_weight, scaled
from audiolora.conv.geometry import ConvGeometry
from audiolora.conv.lowrank import laid_end_to_end, lowrank_grad_A, lowrank_project
from audiolora.conv.native import (
    convolve,
    convolve_plainly,
    input_gradient,
    leaves_gradients_to_torch,
    rows_against,
    rows_times,
    weight_gradient,
    without_autocast,
    worth_laying_end_to_end,
)
from audiolora.conv.packed import PackedWeight, Weight
from audiolora.conv.plan import Path, gradient_path


class FactorGradients(NamedTuple):
    """∂A (r, C_in/g, k), ∂B (C_out, r) and ∂c (C_out,); None where it was not asked for."""

    A: Any = None
    B: Any = None
    c: Any = None


class FusedLowRankConv1d(torch.autograd.Function):
    """The operator itself; call it through `fused_conv1d`."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        W: Weight,
        bias: torch.Tensor | None,
        A: torch.Tensor,
        B: torch.Tensor,
        magnitude: torch.Tensor | None,
        scaling: float,
        geometry: ConvGeometry,
        path: Path,
    ) -> torch.Tensor:
        term = LowRank(A, B, scaling, geometry.transposed_groups)
        V = lora_weight(W, term)
        ctx.scaling, ctx.geometry, ctx.path = scaling, geometry, path
        ctx.packed = W if isinstance(W, PackedWeight) else None  # then backward makes V again: nobody keeps it
        if magnitude is None:
            V = V.to(x.dtype)
            ctx.save_for_backward(x, None if ctx.packed else V, A, B)
            return convolve(x, V, bias, geometry)
        inverse = inverse_norm(V, term.transposed_groups)
        c = magnitude.flatten() * inverse
        if path is Path.DENSE:
            kept = None if ctx.packed else V.to(x.dtype)
            ctx.save_for_backward(x, kept, A, B, magnitude, c, inverse, None)
            return convolve(x, scaled(V, c, term.transposed_groups).to(x.dtype), bias, geometry)
        # The product is saved, not the result: an in-place activation may overwrite the result.
        V = V.to(x.dtype)
        product = convolve(x, V, None, geometry)
        ctx.save_for_backward(x, None if ctx.packed else V, A, B, magnitude, c, inverse, product)
        y = product * c.to(x.dtype)[:, None]
        return y if bias is None else y.add_(bias[:, None])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, V, A, B, *dora = ctx.saved_tensors
        magnitude, c, inverse, product = dora or (None, None, None, None)
        need_x, _, need_bias, need_A, need_B, need_m, *_ = ctx.needs_input_grad
        geometry, term = ctx.geometry, LowRank(A, B, ctx.scaling, ctx.geometry.transposed_groups)
        if V is None:
            V = lora_weight(ctx.packed, term).to(x.dtype)
        dx = dbias = dm = None
        gradients = FactorGradients()
        dy = dy.contiguous()  # y.sum() gives an expanded one; below it is split into groups
        with without_autocast(dy):
            if need_bias:
                dbias = dy.sum((0, 2))
            # The factors first: what their products hold in between is gone again when ∂x is made.
            if ctx.path is Path.DENSE and (need_A or need_B or need_m):
                gradients = dense_gradients(x, dy, V, term, c, geometry)
            elif need_A or need_B or need_m:
                gradients = low_rank_gradients(x, dy, term, c, product, geometry)
            if need_x:
                W_eff = V if c is None else scaled(V, c, term.transposed_groups)
                dx = input_gradient(x, W_eff, dy, geometry)
        dA = gradients.A.to(A.dtype) if need_A else None
        dB = gradients.B.to(B.dtype) if need_B else None
        if magnitude is not None and need_m:
            dm = (gradients.c * inverse).to(magnitude.dtype).view_as(magnitude)
        return dx, None, dbias, dA, dB, dm, None, None, None


def low_rank_gradients(
    x: torch.Tensor,
    dy: torch.Tensor,
    term: LowRank,
    c: torch.Tensor | None,
    product: torch.Tensor | None,
    geometry: ConvGeometry,
) -> FactorGradients:
    """Four products with r rows; ``product`` is conv(x, V) (N, C_out, L_out), for DoRA."""
    A = term.A.to(x.dtype)
    B = (term.B * term.scaling if c is None else term.B * (term.scaling * c)[:, None]).to(x.dtype)
    if geometry.groups > 1:
        dA, dB = _grouped_gradients(x, dy, A, B, geometry)
    elif worth_laying_end_to_end(x, geometry):
        dA, dB = _gradients_end_to_end(x, dy, A, B, geometry)
    else:
        dB = rows_against(lowrank_project(x, A, geometry), dy).mT
        dA = lowrank_grad_A(x, rows_times(B.mT, dy), A, geometry)
    if c is None or product is None:
        return FactorGradients(dA, dB * term.scaling)
    dc = (dy * product).sum((0, 2), dtype=torch.promote_types(dy.dtype, torch.float32))
    return FactorGradients(dA, dB * (term.scaling * c)[:, None], dc)


def _grouped_gradients(
    x: torch.Tensor, dy: torch.Tensor, A: torch.Tensor, B: torch.Tensor, geometry: ConvGeometry
) -> tuple[torch.Tensor, torch.Tensor]:
    """Groups are folded into the batch for A, which they share, and kept apart for B."""
    n, g, (out_channels, r) = x.shape[0], geometry.groups, B.shape
    per_group = out_channels // g  # not left to view(-1): a batch may be empty
    x_groups = x.reshape(n * g, x.shape[1] // g, x.shape[2])
    dy_groups = dy.view(n, g, per_group, dy.shape[2])
    z = lowrank_project(x_groups, A, geometry)
    dB = torch.bmm(z, dy_groups.flatten(0, 1).mT).view(n, g, r, per_group).sum(0).mT.reshape(out_channels, r)
    dz = torch.matmul(B.view(g, per_group, r).mT, dy_groups).flatten(0, 1)
    return lowrank_grad_A(x_groups, dz, A, geometry), dB


def _gradients_end_to_end(
    x: torch.Tensor, dy: torch.Tensor, A: torch.Tensor, B: torch.Tensor, geometry: ConvGeometry
) -> tuple[torch.Tensor, torch.Tensor]:
    """The batch as one long sample: the gaps between samples are zero in ∂y, so that nothing there counts.

    x is laid twice, so that no two copies of a whole tensor are there at once.
    """
    (n, _, length), length_out, padding = x.shape, dy.shape[2], geometry.padding
    slot_out = max(length_out, -(-(length + padding) // geometry.stride))
    slot, unpadded = slot_out * geometry.stride, ConvGeometry(geometry.stride, 0, geometry.dilation)
    z = lowrank_project(laid_end_to_end(x, slot, padding), A, unpadded, n * slot_out)
    dy_laid = laid_end_to_end(dy, slot_out)
    dB, dz = rows_against(z, dy_laid).mT, rows_times(B.mT, dy_laid)
    del dy_laid, z
    return lowrank_grad_A(laid_end_to_end(x, slot, padding), dz, A, unpadded), dB


def dense_gradients(
    x: torch.Tensor,
    dy: torch.Tensor,
    V: torch.Tensor,
    term: LowRank,
    c: torch.Tensor | None,
    geometry: ConvGeometry,
) -> FactorGradients:
    """The dense ∂W' (as the weight is stored), then its projections on A, B and V."""
    work = torch.promote_types(V.dtype, torch.float32)
    G = as_kernel(weight_gradient(x, V, dy, geometry), term.transposed_groups).flatten(1).to(work)
    dc = None
    if c is not None:
        dc = torch.linalg.vecdot(G, as_kernel(V, term.transposed_groups).flatten(1).to(work))
        G = G * c.to(work)[:, None]
    A, B = term.A.flatten(1).to(work), term.B.to(work)
    return FactorGradients((B.mT @ G * term.scaling).view_as(term.A), G @ A.mT * term.scaling, dc)


def fused_conv1d(
    x: torch.Tensor,
    W: Weight,
    bias: torch.Tensor | None,
    term: LowRank,
    geometry: ConvGeometry,
    magnitude: torch.Tensor | None = None,
) -> torch.Tensor:
    """y (N, C_out, L_out) = conv(x, W') + bias; differentiable in x, bias, A, B and the magnitude, not in W.

    Args:
        x: (N, C_in, L), in the dtype the convolution runs in.
        W: (C_out, C_in/g, k), or (C_in, C_out/g, k) if transposed; frozen. Cast to x's dtype after the low-rank term
            is added in float32. A packed one is unpacked in forward and again in backward.
        bias: (C_out,) or None.
        term: the factors.
        geometry: of the convolution.
        magnitude: DoRA's m, C_out elements in any shape, or None.

    Raises:
        ValueError: W requires a gradient: this operator would drop it in silence.

    Example:
        >>> x, W = torch.randn(2, 6, 50), torch.randn(4, 3, 5)
        >>> term = LowRank(torch.randn(2, 3, 5), torch.zeros(4, 2), scaling=1.0)
        >>> fused_conv1d(x, W, None, term, ConvGeometry(stride=2, groups=2)).shape
        torch.Size([2, 4, 23])
    """
    if W.requires_grad:
        raise ValueError("the base weight requires a gradient, which the fused operator does not give; freeze it")
    path = gradient_path(W.shape, term.B.shape[1], geometry)
    if path is Path.DENSE and leaves_gradients_to_torch(x, W, geometry):  # the same sums, without Python in backward
        return convolve_plainly(x, adapted_weight(W, term, magnitude).to(x.dtype), bias, geometry)
    if path is Path.LOW_RANK and holds_less(x, W, term.B.shape[1], geometry, magnitude is not None):
        return BesideLowRankConv1d.apply(x, W, bias, term.A, term.B, magnitude, term.scaling, geometry)
    return FusedLowRankConv1d.apply(x, W, bias, term.A, term.B, magnitude, term.scaling, geometry, path)
