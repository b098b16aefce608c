"""The two convolutions with an r-channel kernel that a low-rank backward needs, as matrix products over shifted views.

    z  = A ∗ x                        (N, r, L_out)     `lowrank_project`
    ∂A = correlation of x with ∂z     (r, C, k)         `lowrank_grad_A`

Tap j of A, an (r, C) matrix, acts on x as a whole; its result is then shifted by the tap's position and added up. An
r-channel convolution does the same arithmetic, but on CPU up to 20 times slower. Groups are folded into the batch
before: x (N, g·C, L) is (N·g, C, L) to the A that the groups share.
"""

from collections.abc import Iterator

import torch

from audiolora.conv.geometry import ConvGeometry
from audiolora.conv.native import rows_against, rows_times


def lowrank_project(
    x: torch.Tensor, A: torch.Tensor, geometry: ConvGeometry, length: int | None = None
) -> torch.Tensor:
    """z (N, r, L_out) = A ∗ x (transposed, if the geometry is) for x (N, C, L) and A (r, C, k) or (N, r, C, k).

    With an A for every sample it is the first half of a mixed batch. ``length`` is L_out, if it is not what the
    geometry gives; beyond that there are zeros.
    """
    r, _, k = A.shape[-3:]
    if length is None:
        length = geometry.output_length(x.shape[-1], k)
    if k == 1 and geometry.stride == 1 and geometry.padding == geometry.output_padding == 0 and length == x.shape[-1]:
        return rows_times(A[..., 0], x)
    # In float32 or better: in bf16 the roundings of a hundred taps would add up.
    z = x.new_zeros(x.shape[0], r, length, dtype=torch.promote_types(x.dtype, torch.float32))
    for taps in _chunks(A):
        part = A[..., taps.start : taps.stop]
        rows = rows_times(part.movedim(-1, -3).flatten(-3, -2), x)
        for tap, view in zip(taps, rows.split(r, dim=1), strict=True):
            there, here = _positions(tap, x.shape[-1], length, geometry)
            z[:, :, there] += view[:, :, here]
    return z.to(x.dtype)


def lowrank_grad_A(x: torch.Tensor, dz: torch.Tensor, A: torch.Tensor, geometry: ConvGeometry) -> torch.Tensor:
    """∂A (r, C, k) from x (N, C, L) and ∂z (N, r, L_out): the adjoint of `lowrank_project` in A."""
    return lowrank_both_gradients(x, dz, A, geometry, None)


def lowrank_both_gradients(
    x: torch.Tensor, dz: torch.Tensor, A: torch.Tensor, geometry: ConvGeometry, dx: torch.Tensor | None
) -> torch.Tensor:
    """∂A as `lowrank_grad_A` has it; onto ``dx`` (N, C, L), unless None, goes the adjoint of `lowrank_project` in x."""
    (n, channels, length), r = x.shape, dz.shape[1]
    dA = []
    for taps in _chunks(A):
        rows = dz.new_zeros(n, len(taps) * r, length)
        for tap, view in zip(taps, rows.split(r, dim=1), strict=True):
            there, here = _positions(tap, length, dz.shape[-1], geometry)
            view[:, :, here] = dz[:, :, there]
        dA.append(rows_against(rows, x).view(len(taps), r, channels))
        if dx is not None:
            part = A[..., taps.start : taps.stop].permute(1, 2, 0).flatten(1)
            dx.baddbmm_(part.expand(n, *part.shape), rows)
    return torch.cat(dA).permute(1, 2, 0)


def lowrank_rows(dz: torch.Tensor, A: torch.Tensor, length: int, geometry: ConvGeometry) -> torch.Tensor:
    """∂z (N, r, L_out) at the positions of x that each tap of A (…, r, C, k) joins: (N, k·r, ``length``), tap by tap.

    A's taps as rows times this is the adjoint of `lowrank_project` in x, this times x transposed the one in A.
    """
    n, r, length_out, k = *dz.shape, A.shape[-1]
    if k == 1 and geometry.stride == 1 and geometry.padding == geometry.output_padding == 0:
        return dz
    rows = dz.new_zeros(n, k, r, length)
    for tap in range(k):
        there, here = _positions(tap, length, length_out, geometry)
        rows[:, tap, :, here] = dz[:, :, there]
    return rows.view(n, k * r, length)


def laid_end_to_end(x: torch.Tensor, slot: int, lead: int = 0) -> torch.Tensor:
    """A batch (N, C, L) as one long sample (1, C, N · slot + lead): before each sample, and at the end, zeros.

    Many short samples make many small products; one long one makes a large product, twice as fast.
    """
    n, channels, length = x.shape
    laid = x.new_zeros(channels, n * slot + lead)
    laid[:, : n * slot].view(channels, n, slot)[:, :, lead : lead + length] = x.transpose(0, 1)
    return laid.unsqueeze(0)


def lowrank_add(
    y: torch.Tensor,
    x: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    c: torch.Tensor | None,
    bias: torch.Tensor | None,
    geometry: ConvGeometry,
) -> torch.Tensor:
    """c · (y + B·(A ∗ x)) + bias: the low-rank path beside the base's, for one adapter or one a sample; by autograd.

    Where nothing is recorded y is overwritten, and no further tensor of its size is made.

    Args:
        y: (N, C_out, L_out), the base's product.
        x: (N, C_in, L).
        A, B: (N or 1, r, C_in/g, k) and (N or 1, C_out, r), B with its scaling.
        c: (N or 1, C_out) or None.
        bias: (C_out,) or None.
        geometry: of the convolution.
    """
    n, g = x.shape[0], geometry.groups
    A, B = A.to(x.dtype), B.to(x.dtype)
    shared = A[0] if A.shape[0] == 1 else A.repeat_interleave(g, dim=0)
    z = lowrank_project(x.reshape(n * g, x.shape[1] // g, x.shape[2]), shared, geometry)
    B = B.view(B.shape[0], g, -1, B.shape[2]).expand(n, g, -1, -1).flatten(0, 1)
    folded = y.view(n * g, -1, y.shape[2])
    operands = (y, z, B) if c is None else (y, z, B, c)
    if torch.is_grad_enabled() and any(operand.requires_grad for operand in operands):
        y = torch.baddbmm(folded, B, z).view(y.shape)
        y = y if c is None else y * c.to(y.dtype)[:, :, None]
    else:
        folded.baddbmm_(B, z)
        y = y if c is None else y.mul_(c.to(y.dtype)[:, :, None])
    return y if bias is None else y + bias[:, None]


def _chunks(A: torch.Tensor) -> Iterator[range]:
    """Taps to take at once: the rows in between then hold no more than x does, or one tap's."""
    r, channels, k = A.shape[-3:]
    several = max(1, channels // r)
    return (range(start, min(k, start + several)) for start in range(0, k, several))


def _positions(tap: int, length_in: int, length_out: int, geometry: ConvGeometry) -> tuple[slice, slice]:
    """Output and input positions that a tap joins."""
    if geometry.transposed:
        inputs, outputs = geometry.tap(tap, length_in, length_out)
    else:
        outputs, inputs = geometry.tap(tap, length_out, length_in)
    return outputs, inputs
