"""The fused operator: y = c · conv(x, W + s·B·A) + bias, with a backward that never forms the dense ∂W.

Forward: the adapted weight once, then one convolution. Backward, with dy' = c·dy:

    ∂x = convᵀ(dy', W')            one transposed convolution, as in the frozen layer
    z  = A ∗ x                     r channels
    ∂B = s · dy' · zᵀ              ∂z = s · Bᵀ · dy'              ∂A = correlation of x with ∂z
    ∂c = Σ dy · conv(x, W')        DoRA only, from the saved product: no second convolution

The alternative, autograd through W + s·B·A, forms ∂W (C_out, C_in/g, k) first: the cost of full fine-tuning. PEFT's
alternative, a side branch B(A(x)), runs two more convolutions forward and four backward.

Groups fold into the batch: x (N, g·C, L) is (N·g, C, L) to the shared A, so one code path serves all. z and ∂A are
matrix products over k shifted views of x: on CPU an r-channel convolution is up to 20 times slower. With one channel a
group (depthwise) the views hold nothing to multiply, and the convolution is taken.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from audiolora.conv.factors import LowRank, lora_weight
from audiolora.conv.geometry import ConvGeometry


def lowrank_project(x: torch.Tensor, A: torch.Tensor, geometry: ConvGeometry) -> torch.Tensor:
    """z (M, r, L_out) = A ∗ x for x (M, C, L) and A (r, C, k); the geometry's groups are already folded into M."""
    stride, padding, dilation = geometry.stride, geometry.padding, geometry.dilation
    if A.shape[1] == 1:
        return F.conv1d(x, A, None, stride, padding, dilation)
    r, channels, k = A.shape
    length = geometry.output_length(x.shape[-1], k)
    rows = F.pad(torch.matmul(A.permute(2, 0, 1).reshape(k * r, channels), x), (padding, padding))
    z = rows.new_zeros(x.shape[0], r, length)
    for tap, view in enumerate(rows.split(r, dim=1)):
        start = tap * dilation
        z += view[:, :, start : start + stride * (length - 1) + 1 : stride]
    return z


def lowrank_grad_A(x: torch.Tensor, dz: torch.Tensor, A: torch.Tensor, geometry: ConvGeometry) -> torch.Tensor:
    """∂A (r, C, k) from x (M, C, L) and ∂z (M, r, L_out): the adjoint of `lowrank_project` in A."""
    stride, padding, dilation = geometry.stride, geometry.padding, geometry.dilation
    if A.shape[1] == 1:
        return torch.ops.aten.convolution_backward(
            dz, x, A, None, [stride], [padding], [dilation], False, [0], 1, [False, True, False]
        )[1]
    (m, channels, length), (r, _, k), length_out = x.shape, A.shape, dz.shape[-1]
    rows = dz.new_zeros(m, k * r, length + 2 * padding)
    for tap, view in enumerate(rows.split(r, dim=1)):
        start = tap * dilation
        view[:, :, start : start + stride * (length_out - 1) + 1 : stride] = dz
    rows = rows[:, :, padding : padding + length]
    return torch.bmm(rows, x.transpose(1, 2)).sum(0).view(k, r, channels).permute(1, 2, 0)


class FusedLowRankConv1d(torch.autograd.Function):
    """The operator itself; call it through `fused_conv1d`."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        W: torch.Tensor,
        bias: torch.Tensor | None,
        A: torch.Tensor,
        B: torch.Tensor,
        scale: torch.Tensor | None,
        scaling: float,
        geometry: ConvGeometry,
    ) -> torch.Tensor:
        W_eff = lora_weight(W, LowRank(A, B, scaling)).to(x.dtype)
        y = F.conv1d(
            x,
            W_eff,
            bias if scale is None else None,
            geometry.stride,
            geometry.padding,
            geometry.dilation,
            geometry.groups,
        )
        if scale is None:
            ctx.save_for_backward(x, W_eff, A, B)
        else:
            # The product is saved, not the result: an in-place activation may overwrite the result.
            ctx.save_for_backward(x, W_eff, A, B, scale, y)
            y = y * scale.to(y.dtype)[:, None]
            y = y if bias is None else y.add_(bias[:, None])
        ctx.scaling, ctx.geometry = scaling, geometry
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, W_eff, A, B, *dora = ctx.saved_tensors
        geometry, needs = ctx.geometry, ctx.needs_input_grad
        dx = dbias = dA = dB = dscale = None
        with torch.autocast(device_type=dy.device.type, enabled=False):
            if needs[2]:
                dbias = dy.sum((0, 2))
            if dora:
                scale, product = dora
                dscale = (dy * product).sum((0, 2)).to(scale.dtype) if needs[5] else None
                dy = dy * scale.to(dy.dtype)[:, None]
            if needs[0]:
                dx = torch.ops.aten.convolution_backward(
                    dy,
                    x,
                    W_eff,
                    None,
                    [geometry.stride],
                    [geometry.padding],
                    [geometry.dilation],
                    False,
                    [0],
                    geometry.groups,
                    [True, False, False],
                )[0]
            if needs[3] or needs[4]:
                dA, dB = _factor_grads(x, dy, A, B, ctx.scaling, geometry, needs[3], needs[4])
        return dx, None, dbias, dA, dB, dscale, None, None


def _factor_grads(
    x: torch.Tensor,
    dy: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    scaling: float,
    geometry: ConvGeometry,
    need_A: bool,
    need_B: bool,
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """∂A (r, C_in/g, k) and ∂B (C_out, r), in the factors' dtypes."""
    n, g, r = x.shape[0], geometry.groups, B.shape[1]
    per_group = B.shape[0] // g  # not left to view(-1): a batch may be empty
    x_groups = x.reshape(n * g, x.shape[1] // g, x.shape[2])
    dy_groups = dy.reshape(n * g, per_group, dy.shape[2])
    A_work, B_work = A.to(x.dtype), (B * scaling).to(x.dtype).view(g, per_group, r)
    dA = dB = None
    if need_B:
        z = lowrank_project(x_groups, A_work, geometry)
        dB = torch.bmm(dy_groups, z.transpose(1, 2)).view(n, g, per_group, r).sum(0)
        dB = (dB.reshape(B.shape) * scaling).to(B.dtype)
    if need_A:
        dz = torch.matmul(B_work.transpose(1, 2), dy_groups.view(n, g, *dy_groups.shape[1:]))
        dA = lowrank_grad_A(x_groups, dz.flatten(0, 1), A_work, geometry).to(A.dtype)
    return dA, dB


def fused_conv1d(
    x: torch.Tensor,
    W: torch.Tensor,
    bias: torch.Tensor | None,
    term: LowRank,
    geometry: ConvGeometry,
    scale: torch.Tensor | None = None,
) -> torch.Tensor:
    """y (N, C_out, L_out) = scale · conv1d(x, W + s·B·A) + bias; differentiable in x, bias, A, B and scale, not in W.

    Args:
        x: (N, C_in, L), in the dtype the convolution runs in.
        W: (C_out, C_in/g, k), frozen. Cast to x's dtype after the low-rank term is added in float32.
        bias: (C_out,) or None.
        term: the factors.
        geometry: of the convolution.
        scale: (C_out,) multiplies each output channel's weight (DoRA), or None.

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
    return FusedLowRankConv1d.apply(x, W, bias, term.A, term.B, scale, term.scaling, geometry)
