"""One frozen convolution, an adapter for every device: y_d = c_d · (W ∗ x_d + s·B_d·(A_d ∗ x_d)) + bias_d.

The factors of n devices are stacked, A (n, r, C_in/g, k) and B (n, C_out, r), and the batch holds m samples of each
device, device after device: x (n·m, C_in, L). Two forms, of which `conv.plan` says the cheaper:

- shared: one convolution with W for everybody, then batched products with r rows. Forward z = A ∗ x, y += s·B·z;
  backward ∂z = s·Bᵀ·∂y, ∂B = s·∂y·zᵀ, and the shifted copies of ∂z serve both ∂A = ∂z·xᵀ and the low-rank path's ∂x.
- each: a kernel a device, W + s·B·A, one convolution with a group for each device, its dense ∂W projected on the
  factors. Cheaper where r is not small against the channels of a group.

One device alone goes through the fused operator (`conv.fused`) in the place of the first. The alternative,
``torch.func.vmap`` over a functional network, batches every operation of the network and cannot choose.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from audiolora.conv.factors import LowRank, as_kernel, inverse_norms, stored
from audiolora.conv.fused import fused_conv1d
from audiolora.conv.geometry import ConvGeometry
from audiolora.conv.lowrank import lowrank_project, lowrank_rows
from audiolora.conv.native import (
    convolve,
    convolve_plainly,
    input_gradient,
    leaves_gradients_to_torch,
    weight_gradient,
    without_autocast,
)
from audiolora.conv.plan import Path, gradient_path


@dataclass(frozen=True)
class Stack:
    """The low-rank terms of n devices over one weight.

    Args:
        A: (n, r, C_in/g, k); over a Linear's weight (n, r, in).
        B: (n, C_out, r).
        scaling: s, the same for all.
        magnitude: DoRA's m (n, C_out), or None.
        transposed_groups: g where the weight is a transposed convolution's, (C_in, C_out/g, k); else None.
    """

    A: torch.Tensor
    B: torch.Tensor
    scaling: float
    magnitude: torch.Tensor | None = None
    transposed_groups: int | None = None

    def __len__(self) -> int:
        return self.A.shape[0]

    def weights(self, W: torch.Tensor) -> torch.Tensor:
        """W' (n, C_out, C_in/g, k): a kernel for every device, by autograd."""
        kernel = as_kernel(W, self.transposed_groups)
        flat = kernel.flatten(1)[None] if W.dtype == self.A.dtype else kernel.flatten(1)[None].to(self.A.dtype)
        V = torch.baddbmm(flat, self.B, self.A.flatten(2), alpha=self.scaling)
        if self.magnitude is not None:
            V = V * (self.magnitude * self.inverse_norms(W))[:, :, None]
        return V.view(len(self), *kernel.shape)

    def inverse_norms(self, W: torch.Tensor) -> torch.Tensor:
        """1 / ‖W + s·B_d·A_d‖ (n, C_out), a constant in backward."""
        A, B = self.A.detach(), self.B.detach() * self.scaling
        return inverse_norms(W, A if A.dim() == 4 else A[..., None], B, self.transposed_groups)


def stacked_conv1d(
    x: torch.Tensor, W: torch.Tensor, bias: torch.Tensor | None, stack: Stack, geometry: ConvGeometry
) -> torch.Tensor:
    """y (n·m, C_out, L_out); differentiable in x, the bias and the stack, not in W.

    Args:
        x: (n·m, C_in, L), device after device, in the dtype the convolution runs in.
        W: (C_out, C_in/g, k), or (C_in, C_out/g, k) if transposed; frozen.
        bias: (C_out,) for all devices, (n, C_out), or None.
        stack: the factors.
        geometry: of the convolution.

    Raises:
        ValueError: W requires a gradient: it would be dropped in silence.

    Example:
        >>> x, W = torch.randn(6, 4, 50), torch.randn(8, 4, 3)  # two samples of each of three devices
        >>> stack = Stack(torch.randn(3, 2, 4, 3), torch.zeros(3, 8, 2), scaling=1.0)
        >>> stacked_conv1d(x, W, None, stack, ConvGeometry(stride=2)).shape
        torch.Size([6, 8, 24])
    """
    if W.requires_grad:
        raise ValueError("the base weight requires a gradient, which a fleet's operator does not give; freeze it")
    path = gradient_path(W.shape, stack.A.shape[1], geometry)
    if len(stack) == 1 and not (path is Path.DENSE and geometry.transposed_groups is None):
        magnitude = None if stack.magnitude is None else stack.magnitude[0]
        term = LowRank(stack.A[0], stack.B[0], stack.scaling, stack.transposed_groups)
        alone = bias[0] if bias is not None and bias.dim() == 2 else bias
        return fused_conv1d(x, W, alone, term, geometry, magnitude)
    if path is Path.DENSE:
        V = stack.weights(W)
        return each_conv1d(x, stored_each(V, stack.transposed_groups), bias, geometry)
    inverse = None if stack.magnitude is None else stack.inverse_norms(W)
    return _SharedConv1d.apply(x, W, bias, stack.A, stack.B, stack.magnitude, inverse, stack.scaling, geometry)


def each_conv1d(
    x: torch.Tensor, weights: torch.Tensor, bias: torch.Tensor | None, geometry: ConvGeometry
) -> torch.Tensor:
    """y (n·m, C_out, L_out) by a weight for every device (n, …) as a convolution stores it; differentiable in all.

    Arguments beside ``weights`` as in `stacked_conv1d`.
    """
    n, grouped = weights.shape[0], _in_groups(geometry, weights.shape[0])
    if not leaves_gradients_to_torch(x, weights[0], grouped):
        return _EachConv1d.apply(x, weights, bias, grouped)
    if bias is not None and (n > 1 or bias.dim() == 2):
        bias = bias.expand(n, -1).reshape(-1)
    if weights.dtype != x.dtype:
        weights, bias = weights.to(x.dtype), None if bias is None else bias.to(x.dtype)
    return _unfold(convolve_plainly(_fold(x, n), weights.flatten(0, 1), bias, grouped), n)


def stored_each(kernels: torch.Tensor, transposed_groups: int | None) -> torch.Tensor:
    """Kernels (n, C_out, C_in/g, k) as convolutions store them."""
    if transposed_groups is None:
        return kernels
    n = kernels.shape[0]
    return stored(kernels.flatten(0, 1), n * transposed_groups).unflatten(0, (n, -1))


class _EachConv1d(torch.autograd.Function):
    """The batch as m samples of n times the channels, with n times the groups, which ``geometry`` has already."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weights: torch.Tensor, bias: torch.Tensor | None, geometry: ConvGeometry
    ) -> torch.Tensor:
        n, flat = weights.shape[0], weights.flatten(0, 1).to(x.dtype)
        ctx.geometry, ctx.n, ctx.dtype = geometry, n, weights.dtype
        ctx.per_device_bias = bias is not None and bias.dim() == 2
        folded = _fold(x, n)
        ctx.save_for_backward(folded, flat)
        if bias is not None:
            bias = bias.to(x.dtype).expand(n, -1).reshape(-1)
        return _unfold(convolve(folded, flat, bias, ctx.geometry), n)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weights = ctx.saved_tensors
        need_x, need_weights, need_bias, _ = ctx.needs_input_grad
        dx = dweights = dbias = None
        with without_autocast(dy):
            dy = _fold(dy.contiguous(), ctx.n)
            if need_weights:
                dweights = weight_gradient(x, weights, dy, ctx.geometry).to(ctx.dtype).unflatten(0, (ctx.n, -1))
            if need_bias:
                dbias = dy.sum((0, 2)).view(ctx.n, -1)
                dbias = dbias if ctx.per_device_bias else dbias.sum(0)
            if need_x:
                dx = _unfold(input_gradient(x, weights, dy, ctx.geometry), ctx.n)
        return dx, dweights, dbias, None


class _SharedConv1d(torch.autograd.Function):
    """One convolution with W, and batched products with r rows; call it through `stacked_conv1d`."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        W: torch.Tensor,
        bias: torch.Tensor | None,
        A: torch.Tensor,
        B: torch.Tensor,
        magnitude: torch.Tensor | None,
        inverse: torch.Tensor | None,
        scaling: float,
        geometry: ConvGeometry,
    ) -> torch.Tensor:
        n, g, samples = A.shape[0], geometry.groups, x.shape[0]
        W = W.to(x.dtype)
        ctx.scaling, ctx.geometry, ctx.n, ctx.bias_dim = scaling, geometry, n, 0 if bias is None else bias.dim()
        A_each, B_each = _spread(A.to(x.dtype), samples // n * g), _spread_B(B.to(x.dtype) * scaling, samples // n, g)
        shared_bias = bias if ctx.bias_dim == 1 and magnitude is None else None
        y = convolve(x, W, shared_bias, geometry)
        z = lowrank_project(x.reshape(samples * g, x.shape[1] // g, x.shape[2]), A_each, geometry)
        y.view(samples * g, -1, y.shape[2]).baddbmm_(B_each, z)
        if magnitude is None or inverse is None:
            ctx.save_for_backward(x, W, A, B, z)
        else:
            c = magnitude * inverse
            ctx.save_for_backward(x, W, A, B, z, y, c, inverse)  # the product: an activation may overwrite the result
            y = y * c.to(y.dtype).repeat_interleave(samples // n, 0)[:, :, None]
        if bias is not None and shared_bias is None:
            per_sample = bias.to(y.dtype).expand(n, -1).repeat_interleave(samples // n, 0)
            y.add_(per_sample[:, :, None])
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, W, A, B, z, *dora = ctx.saved_tensors
        need_x, _, need_bias, need_A, need_B, need_m, *_ = ctx.needs_input_grad
        n, g, s, dx, dbias, dm = ctx.n, ctx.geometry.groups, ctx.scaling, None, None, None
        dy = dy.contiguous()
        samples, out_channels, length = dy.shape
        m = samples // n
        with without_autocast(dy):
            if need_bias:
                dbias = dy.sum(2).view(n, m, -1).sum(1) if ctx.bias_dim == 2 else dy.sum((0, 2))
            if dora:
                product, c, inverse = dora
                if need_m:
                    dm = torch.linalg.vecdot(dy, product).view(n, m, -1).sum(1).to(c.dtype) * inverse
                dy = dy * c.to(dy.dtype).repeat_interleave(m, 0)[:, :, None]
            by_group = dy.view(samples * g, out_channels // g, length)
            B_each = _spread_B(B.to(dy.dtype) * s, m, g)
            rows = lowrank_rows(torch.bmm(B_each.mT, by_group), A, x.shape[2], ctx.geometry)
            dB = (torch.bmm(by_group, z.mT).view(n, m, out_channels, -1).sum(1) * s).to(B.dtype) if need_B else None
            x_groups = x.reshape(samples * g, x.shape[1] // g, x.shape[2])
            dA = _gradient_A(rows, x_groups, A) if need_A else None
            if need_x:
                dx = input_gradient(x, W, dy, ctx.geometry).contiguous()
                taps = _spread(_taps(A.to(dx.dtype)), m * g)
                dx.view(x_groups.shape).baddbmm_(taps.mT, rows)
        return dx, None, dbias, dA, dB, dm, None, None, None


def _gradient_A(rows: torch.Tensor, x: torch.Tensor, A: torch.Tensor) -> torch.Tensor:
    """∂A (n, r, C, k) from the shifted rows of ∂z (n·m, k·r, L) and x (n·m, C, L)."""
    n, r, channels, k = A.shape
    return torch.bmm(rows, x.mT).view(n, -1, k, r, channels).sum(1).permute(0, 2, 3, 1).to(A.dtype)


def _taps(A: torch.Tensor) -> torch.Tensor:
    """(n, k·r, C) of A (n, r, C, k)."""
    return A.movedim(-1, -3).flatten(-3, -2)


def _spread(per_device: torch.Tensor, times: int) -> torch.Tensor:
    """From one for each device to one for each of its samples."""
    return per_device if times == 1 else per_device.repeat_interleave(times, 0)


def _spread_B(B: torch.Tensor, samples: int, groups: int) -> torch.Tensor:
    """(n·m·g, C_out/g, r) of B (n, C_out, r)."""
    return _spread(B, samples).view(-1, B.shape[1] // groups, B.shape[2])


def _fold(x: torch.Tensor, n: int) -> torch.Tensor:
    """(m, n·C, L) of (n·m, C, L)."""
    if n == 1:
        return x
    samples, channels, length = x.shape
    if samples == n:
        return x.reshape(1, n * channels, length)
    return x.reshape(n, -1, channels, length).transpose(0, 1).reshape(samples // n, n * channels, length)


def _unfold(y: torch.Tensor, n: int) -> torch.Tensor:
    """(n·m, C, L) of (m, n·C, L)."""
    if n == 1:
        return y
    m, channels, length = y.shape
    if m == 1:
        return y.reshape(n, channels // n, length)
    return y.reshape(m, n, channels // n, length).transpose(0, 1).reshape(n * m, channels // n, length)


@lru_cache(maxsize=1024)
def _in_groups(geometry: ConvGeometry, n: int) -> ConvGeometry:
    return ConvGeometry(
        geometry.stride,
        geometry.padding,
        geometry.dilation,
        geometry.groups * n,
        geometry.transposed,
        geometry.output_padding,
    )
