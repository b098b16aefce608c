"""torch's convolution and matrix products, called the way in which each is fast.

On CPU in float32 oneDNN's convolution kernels hold 14 taps of a row at most; beyond that torch falls back to code that
is two to forty times slower. Other ways to the same numbers avoid it (measured on one AVX-512 core, torch 2.13):

- long kernels (wav2vec2's positions k = 128, InceptionTime k = 39): sums of convolutions of 13 taps, 2-5 times faster;
- depthwise ones (Conformer k = 31, ModernTCN k = 51): a column instead of a row, (N, C, L, 1), 8-20 times faster;
- pointwise ones (k = 1): a matrix product by oneDNN, which reads x where it lies, twice as fast;
- dilated ones padded beforehand (causal networks): ∂x as a convolution of ∂y with the kernel turned round, 1.2-3 times;
- strided ones: ∂x by one matrix product and k shifted sums, up to a third faster (torch copies it from another order);
- few inputs to many outputs (wav2vec2's first layer, 1 to 512 channels): ∂W by one matrix product, 5 times faster.

Everywhere else, on other devices and inside ``torch.compile``, torch's own convolution is called as it is.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F

from audiolora.conv.geometry import ConvGeometry
from audiolora.conv.packed import Weight

TAPS = 13
"""A kernel longer than this by a few taps is cut into pieces of this many."""

_WORTH_PADDING = 1 << 19
"""Multiply-adds of a dilated convolution from which copies cost less than oneDNN's own padding."""

_WORTH_ONEDNN = 1 << 16
"""Elements of a matrix from which oneDNN's product with a few rows (8 to 64) beats MKL's."""


def without_autocast(x: torch.Tensor) -> AbstractContextManager[Any]:
    """What stands inside runs in its operands' own dtypes."""
    device = x.device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


def rows_times(rows: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """(N, M, L) = rows (M, C) or (N, M, C) times x (N, C, L)."""
    if rows.dim() == 2 and _onednn_product(x, rows):
        result, rows = x.new_empty(x.shape[0], rows.shape[0], x.shape[2]), _packed(rows)
        for each, sample in zip(result, x, strict=True):
            each.copy_(_linear(rows, sample.mT))
        return result
    return torch.bmm(rows.expand(x.shape[0], *rows.shape[-2:]), x)


def rows_against(rows: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """(M, C) = Σ_n rows (N, M, L) times x (N, C, L) transposed."""
    if _onednn_product(x, rows) and rows.is_contiguous():
        total = _linear(rows[0], x[0])
        for each, sample in zip(rows[1:], x[1:], strict=True):
            total += _linear(each, sample)
        return total
    return torch.bmm(rows, x.mT).sum(0)


def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a (M, K) times b (K, N), in their own dtype under autocast too."""
    recorded = torch.is_grad_enabled() and (a.requires_grad or b.requires_grad)
    if not recorded and a.shape[0] * b.shape[1] >= _WORTH_ONEDNN and a.dtype == b.dtype and eager_cpu(a):
        return _linear(_packed(a), _packed(b).mT)
    with without_autocast(a):
        return a @ b


def plus_product(base: torch.Tensor, a: torch.Tensor, b: torch.Tensor, alpha: float) -> torch.Tensor:
    """base (M, N) + alpha · a (M, K) times b (K, N), all of one dtype; a new tensor."""
    recorded = torch.is_grad_enabled() and (a.requires_grad or b.requires_grad or base.requires_grad)
    if not recorded and base.numel() >= _WORTH_ONEDNN and eager_cpu(a):
        return product(a * alpha, b).add_(base)
    with without_autocast(a):
        return torch.addmm(base, a, b, alpha=alpha)


def _packed(matrix: torch.Tensor) -> torch.Tensor:
    """Without gaps, in either order."""
    return matrix if matrix.is_contiguous() or matrix.mT.is_contiguous() else matrix.contiguous()


def _linear(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a (M, K) times b (N, K) transposed, by oneDNN; torch's own ``mm`` calls MKL, half as fast on skinny matrices."""
    return torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")


def _onednn_product(x: torch.Tensor, rows: torch.Tensor) -> bool:
    """Where it is the faster one. It has no derivative, so never under autograd; and views make it crawl."""
    if not (eager_cpu(x) and x.shape[0] > 0 and x.shape[1] * x.shape[2] >= _WORTH_ONEDNN):
        return False
    recorded = torch.is_grad_enabled() and (x.requires_grad or rows.requires_grad)
    return not recorded and x.is_contiguous()


def worth_laying_end_to_end(x: torch.Tensor, geometry: ConvGeometry) -> bool:
    """Whether x (N, C, L) is many samples, each too small for oneDNN's product and all together large enough."""
    one = x.shape[1] * x.shape[2]
    return one < _WORTH_ONEDNN <= one * x.shape[0] // 2 and not geometry.transposed and eager_cpu(x)


def eager_cpu(x: torch.Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and torch.backends.mkldnn.is_available()
    )


def _is_pointwise(x: torch.Tensor, W: torch.Tensor, geometry: ConvGeometry) -> bool:
    return W.shape[2] == 1 and geometry == ConvGeometry() and _onednn_product(x, W)


def _is_long(x: torch.Tensor, W: Weight, geometry: ConvGeometry) -> bool:
    return W.shape[2] > TAPS + 3 and not geometry.transposed and W.shape[1] > 1 and eager_cpu(x)


def _is_strided(x: torch.Tensor, W: torch.Tensor, dy: torch.Tensor, geometry: ConvGeometry) -> bool:
    """Several samples: the product of one is held beside ∂x."""
    ordinary = geometry.stride > 1 and geometry.groups == 1 and not geometry.transposed
    return ordinary and x.shape[0] > 1 and W.shape[1] >= 64 and _onednn_product(dy, W)


def _is_dilated(x: torch.Tensor, W: Weight, geometry: ConvGeometry) -> bool:
    """Where the kernel reaches further than oneDNN's ∂x is fast. With padding of the convolution's own it is fast."""
    reach = geometry.dilation * (W.shape[2] - 1)
    ordinary = geometry.stride == 1 and not geometry.transposed and W.shape[1] > 1
    far = geometry.dilation > 1 and TAPS < reach and geometry.padding == 0
    return ordinary and far and x.numel() * W.shape[1:].numel() >= _WORTH_PADDING and eager_cpu(x)


def _is_depthwise(x: torch.Tensor, W: Weight, geometry: ConvGeometry) -> bool:
    return geometry.groups == x.shape[1] == W.shape[0] and W.shape[1] == 1 and W.shape[2] > 3 and eager_cpu(x)


def convolve(x: torch.Tensor, W: torch.Tensor, bias: torch.Tensor | None, geometry: ConvGeometry) -> torch.Tensor:
    """y (N, C_out, L_out), as ``F.conv1d`` or ``F.conv_transpose1d`` gives it.

    Args:
        x: (N, C_in, L).
        W: (C_out, C_in/g, k), or (C_in, C_out/g, k) if transposed.
        bias: (C_out,) or None.
        geometry: of the convolution.

    Example:
        >>> convolve(torch.ones(1, 2, 5), torch.ones(3, 2, 2), None, ConvGeometry()).shape
        torch.Size([1, 3, 4])
    """
    if _is_pointwise(x, W, geometry):
        y = rows_times(W[:, :, 0], x)
        return y if bias is None else y.add_(bias[:, None])
    if _is_depthwise(x, W, geometry) and W.shape[2] > TAPS and not (torch.is_grad_enabled() and W.requires_grad):
        return torch.convolution(x[..., None], W[..., None], bias, *_column(geometry)).squeeze(3)
    if _is_long(x, W, geometry):
        return _convolve_long(x, W, bias, geometry)
    return torch.convolution(x, W, bias, *_arguments(geometry))


def convolve_plainly(
    x: torch.Tensor, W: torch.Tensor, bias: torch.Tensor | None, geometry: ConvGeometry
) -> torch.Tensor:
    """`convolve` for what `leaves_gradients_to_torch`, which has looked at the other ways already."""
    return torch.convolution(x, W, bias, *_arguments(geometry))


def input_gradient(x: torch.Tensor, W: torch.Tensor, dy: torch.Tensor, geometry: ConvGeometry) -> torch.Tensor:
    """∂x (N, C_in, L) from ∂y (N, C_out, L_out); of x only the shape counts."""
    if _is_pointwise(dy, W, geometry):
        return rows_times(W[:, :, 0].mT, dy)
    if _is_long(x, W, geometry):
        return _input_gradient_long(x, W, dy, geometry)
    if _is_dilated(x, W, geometry):
        return _input_gradient_dilated(x, W, dy, geometry)
    if _is_strided(x, W, dy, geometry):
        return _input_gradient_strided(x, W, dy, geometry)
    return torch.ops.aten.convolution_backward(dy, x, W, None, *_arguments(geometry), [True, False, False])[0]


def weight_gradient(x: torch.Tensor, W: torch.Tensor, dy: torch.Tensor, geometry: ConvGeometry) -> torch.Tensor:
    """The dense ∂W, of W's shape; of W only the shape counts."""
    only_W = [False, True, False]
    if _has_few_inputs(x, W, geometry):
        return _weight_gradient_of_few_inputs(x, W, dy, geometry)
    if _is_depthwise(x, W, geometry):
        return _weight_gradient_of_depthwise(x, W, dy, geometry)
    if _is_long(x, W, geometry):
        dW = torch.empty_like(W)
        pieces = _pieces(_padded(x, geometry), W, dy.shape[2], geometry)
        for (view, part, unpadded), here in zip(pieces, dW.split(TAPS, dim=2), strict=True):
            here.copy_(torch.ops.aten.convolution_backward(dy, view, part, None, *_arguments(unpadded), only_W)[1])
        return dW
    if _is_misread(x, geometry):
        x, dy, geometry = _padded_by_hand(x, dy, geometry)
    return torch.ops.aten.convolution_backward(dy, x, W, None, *_arguments(geometry), only_W)[1]


def leaves_gradients_to_torch(x: torch.Tensor, W: Weight, geometry: ConvGeometry) -> bool:
    """Whether none of the other ways is for this convolution: autograd's own gradients are as fast, and right."""
    ours = (_is_long, _is_depthwise, _has_few_inputs, _is_dilated)
    if any(is_for(x, W, geometry) for is_for in ours) or _is_misread(x, geometry):
        return False
    return geometry.stride == 1 and W.shape[2] > 1


def _has_few_inputs(x: torch.Tensor, W: Weight, geometry: ConvGeometry) -> bool:
    """Then every shifted view of x together is small against y, and worth it where y is large."""
    ordinary = geometry.groups == 1 and not geometry.transposed
    large = x.shape[0] * W.shape[0] * (x.shape[2] // geometry.stride) >= _WORTH_ONEDNN
    return ordinary and large and 4 * W.shape[1] * W.shape[2] <= W.shape[0] and eager_cpu(x)


def _weight_gradient_of_few_inputs(
    x: torch.Tensor, W: torch.Tensor, dy: torch.Tensor, geometry: ConvGeometry
) -> torch.Tensor:
    """∂W as one product of k shifted views of x with ∂y."""
    (n, channels, length), k, length_out = x.shape, W.shape[2], dy.shape[2]
    views = x.new_zeros(n, channels, k, length_out)
    for j in range(k):
        outputs, inputs = geometry.tap(j, length_out, length)
        views[:, :, j, outputs] = x[:, :, inputs]
    return rows_against(views.view(n, channels * k, length_out), dy).mT.reshape(W.shape)


def _weight_gradient_of_depthwise(
    x: torch.Tensor, W: torch.Tensor, dy: torch.Tensor, geometry: ConvGeometry
) -> torch.Tensor:
    """As a column, padded beforehand: from some 33 taps on oneDNN's own padding gives up to half of the taps wrong, or
    writes past its memory (torch 2.13). One sample after the other: a padded copy of them all is slower and larger."""
    dW = torch.zeros_like(W)
    for sample, gradient in zip(x.split(1), dy.split(1), strict=True):
        here, there, unpadded = _padded_by_hand(sample, gradient, geometry)
        columns = there[..., None], here[..., None], W[..., None]
        arguments = _column(unpadded)
        dW += torch.ops.aten.convolution_backward(*columns, None, *arguments, [False, True, False])[1].squeeze(3)
    return dW


def _is_misread(x: torch.Tensor, geometry: ConvGeometry) -> bool:
    """Strided, dilated and padded: of some such convolutions torch 2.13's ∂W on CPU is unrelated to the right one."""
    return geometry.stride > 1 and geometry.dilation > 1 and geometry.padding > 0 and x.device.type == "cpu"


def _padded_by_hand(
    x: torch.Tensor, dy: torch.Tensor, geometry: ConvGeometry
) -> tuple[torch.Tensor, torch.Tensor, ConvGeometry]:
    """The same pairs of positions without padding in the geometry: it is on the long side, which a transposed
    convolution has for its output."""
    p, unpadded = geometry.padding, replace(geometry, padding=0)
    return (x, F.pad(dy, (p, p)), unpadded) if geometry.transposed else (F.pad(x, (p, p)), dy, unpadded)


def _arguments(g: ConvGeometry) -> tuple[list[int], list[int], list[int], bool, list[int], int]:
    return [g.stride], [g.padding], [g.dilation], g.transposed, [g.output_padding], g.groups


def _column(g: ConvGeometry) -> tuple[list[int], list[int], list[int], bool, list[int], int]:
    """The same over (N, C, L, 1)."""
    return [g.stride, 1], [g.padding, 0], [g.dilation, 1], g.transposed, [g.output_padding, 0], g.groups


def _padded(x: torch.Tensor, geometry: ConvGeometry) -> torch.Tensor:
    return F.pad(x, (geometry.padding, geometry.padding)) if geometry.padding else x


def _pieces(
    x: torch.Tensor, W: torch.Tensor, length_out: int, geometry: ConvGeometry
) -> list[tuple[torch.Tensor, torch.Tensor, ConvGeometry]]:
    """Views of the padded x, of at most `TAPS` taps of W, and the geometry that joins them; their results add up."""
    unpadded = ConvGeometry(geometry.stride, 0, geometry.dilation, geometry.groups)
    pieces = []
    for part, start in zip(W.split(TAPS, dim=2), range(0, W.shape[2], TAPS), strict=True):
        reach = (length_out - 1) * geometry.stride + (part.shape[2] - 1) * geometry.dilation + 1
        view = x[:, :, start * geometry.dilation : start * geometry.dilation + reach]
        pieces.append((view, part, unpadded))
    return pieces


def _convolve_long(x: torch.Tensor, W: torch.Tensor, bias: torch.Tensor | None, geometry: ConvGeometry) -> torch.Tensor:
    length = geometry.output_length(x.shape[2], W.shape[2])
    y = None
    for view, part, unpadded in _pieces(_padded(x, geometry), W, length, geometry):
        if y is None:
            y = torch.convolution(view, part, bias, *_arguments(unpadded))
        else:
            y += torch.convolution(view, part, None, *_arguments(unpadded))
    assert y is not None, "a kernel has taps"
    return y


def _input_gradient_strided(x: torch.Tensor, W: torch.Tensor, dy: torch.Tensor, geometry: ConvGeometry) -> torch.Tensor:
    (_, channels, length), k = x.shape, W.shape[2]
    rows = W.permute(2, 1, 0).reshape(k * channels, -1)
    dx = dy.new_zeros(x.shape)
    for here, sample in zip(dx, dy, strict=True):
        parts = _linear(rows, sample.mT).view(k, channels, -1)
        for j in range(k):
            outputs, inputs = geometry.tap(j, dy.shape[2], length)
            here[:, inputs] += parts[j, :, outputs]
    return dx


def _input_gradient_dilated(x: torch.Tensor, W: torch.Tensor, dy: torch.Tensor, geometry: ConvGeometry) -> torch.Tensor:
    g, (out_channels, per_group, k) = geometry.groups, W.shape
    if 2 * geometry.dilation * (k - 1) > dy.shape[2]:
        return _input_gradient_far(x, W, dy, geometry)
    turned = W.flip(2).view(g, out_channels // g, per_group, k).transpose(1, 2).reshape(g * per_group, -1, k)
    reach = geometry.dilation * (k - 1)
    return torch.convolution(F.pad(dy, (reach, reach)), turned, None, *_arguments(geometry))


def _input_gradient_far(x: torch.Tensor, W: torch.Tensor, dy: torch.Tensor, geometry: ConvGeometry) -> torch.Tensor:
    """Where a dilated kernel reaches over much of ∂y, most of a padded one would be zeros: the taps one by one, in one
    pointwise convolution, and their shifted sum."""
    g, (out_channels, per_group, k), (n, _, length) = geometry.groups, W.shape, x.shape
    taps = W.view(g, out_channels // g, per_group, k).permute(0, 3, 2, 1).reshape(g * k * per_group, -1, 1)
    parts = torch.convolution(dy, taps, None, *_arguments(ConvGeometry(groups=g)))
    parts = parts.view(n, g, k, per_group, dy.shape[2])
    dx = dy.new_zeros(n, g, per_group, length)
    for j in range(k):
        outputs, inputs = geometry.tap(j, dy.shape[2], length)
        dx[..., inputs] += parts[:, :, j, :, outputs]
    return dx.view(x.shape)


def _input_gradient_long(x: torch.Tensor, W: torch.Tensor, dy: torch.Tensor, geometry: ConvGeometry) -> torch.Tensor:
    n, channels, length = x.shape
    padded = dy.new_zeros(n, channels, length + 2 * geometry.padding)
    for view, part, unpadded in _pieces(padded, W, dy.shape[2], geometry):
        view += torch.ops.aten.convolution_backward(dy, view, part, None, *_arguments(unpadded), [True, False, False])[
            0
        ]
    return padded[:, :, geometry.padding : geometry.padding + length]
