"""The low-rank path beside the base's: y = c · (W ∗ x + s·B·(A ∗ x)) + bias, and a backward that forms no weight.

`conv.fused` forms W' = W + s·B·A, once as large as W, and holds it from forward to backward. Where W is large against
what passes through it (wide layers, short inputs) that is the most a step holds. Here W is used as it lies:

    z  = A ∗ x                                  r channels, kept for ∂B
    ∂B = s · c∂y · zᵀ        ∂z = s · Bᵀ · c∂y        ∂A = correlation of x with ∂z
    ∂x = convᵀ(c∂y, W) + Aᵀ ∗ ∂z                the sum in place
    ∂c = Σ ∂y · (W ∗ x + s·B·z)                 DoRA only, from the saved product

It costs two more products with r rows and saves three passes over a weight: the same time, measured.
"""

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from audiolora.conv.factors import inverse_norms
from audiolora.conv.geometry import ConvGeometry
from audiolora.conv.lowrank import lowrank_both_gradients, lowrank_project
from audiolora.conv.native import convolve, eager_cpu, input_gradient, rows_against, rows_times, without_autocast
from audiolora.conv.packed import PackedWeight, Weight, unpacked


def holds_less(x: torch.Tensor, W: Weight, r: int, geometry: ConvGeometry, dora: bool = False) -> bool:
    """Whether W' would be large against the tensors of a step, and what this way holds, k · r rows of x's length, not.

    DoRA's c goes onto ∂y here and onto the weight there: this way only where ∂y is the smaller. Only on CPU, where it
    was measured.
    """
    n, channels, length = x.shape
    rows = n * length * r * W.shape[2]
    inputs = n * length * channels
    outputs = n * length * (W.shape[1] * geometry.stride if geometry.transposed else W.shape[0] // geometry.stride)
    large = W.numel() > 2 * rows and 8 * W.numel() > inputs + outputs
    return large and (W.numel() > outputs or not dora) and geometry.groups == 1 and eager_cpu(x)


class BesideLowRankConv1d(torch.autograd.Function):
    """The operator itself; `conv.fused.fused_conv1d` calls it where `holds_less`."""

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
    ) -> torch.Tensor:
        ctx.scaling, ctx.geometry = scaling, geometry
        ctx.packed = W if isinstance(W, PackedWeight) else None  # then backward unpacks it again
        W = unpacked(W)
        kept = None if ctx.packed else W
        sB = B.to(x.dtype) * scaling
        z = lowrank_project(x, A.to(x.dtype), geometry)
        y = convolve(x, W, bias if magnitude is None else None, geometry)
        y.baddbmm_(sB.expand(x.shape[0], *B.shape), z)
        if magnitude is None:
            ctx.save_for_backward(x, kept, A, B, z)
            return y
        inverse = inverse_norms(W, A[None].to(x.dtype), sB[None], geometry.transposed_groups)[0]
        c = magnitude.flatten().to(x.dtype) * inverse
        # The product is saved, not the result: an in-place activation may overwrite the result.
        ctx.save_for_backward(x, kept, A, B, z, magnitude, c, inverse, y)
        y = y * c[:, None]
        return y if bias is None else y.add_(bias[:, None])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, W, A, B, z, *dora = ctx.saved_tensors
        need_x, _, need_bias, need_A, need_B, need_m, *_ = ctx.needs_input_grad
        dx = dbias = dA = dB = dm = None
        dy = dy.contiguous()  # y.sum() gives an expanded one
        with without_autocast(dy):
            if need_bias:
                dbias = dy.sum((0, 2))
            if dora:
                magnitude, c, inverse, product = dora
                if need_m:
                    dm = ((dy * product).sum((0, 2)) * inverse).to(magnitude.dtype).view_as(magnitude)
                dy = dy * c[:, None]
            if need_B:
                dB = (rows_against(z, dy).mT * ctx.scaling).to(B.dtype)
            if need_x:
                dx = input_gradient(x, W if ctx.packed is None else ctx.packed.unpack(), dy, ctx.geometry)
            if need_A or need_x:
                dz = rows_times(B.to(x.dtype).mT * ctx.scaling, dy)
                dA = lowrank_both_gradients(x, dz, A.to(x.dtype), ctx.geometry, dx).to(A.dtype)
        return dx, None, dbias, dA if need_A else None, dB, dm, None, None
