"""Convolution kernels in 8 and in 4 bits. Each formula stands here and nowhere else: a device runs the same numbers.

A kernel is taken as the matrix (C_out, K), K = C_in/g · k, for transposed convolutions too (`conv.factors`); a Linear's
weight is (out, in) as it is.

**int8**, symmetric, one scale an output channel:

    s_o = max_j |W_oj| / 127,   q_oj = round(W_oj / s_o) ∈ {-127, …, 127},   Ŵ_oj = s_o · q_oj

so |Ŵ - W| ≤ s_o / 2 = max|W_o| / 254. It is ONNX's DequantizeLinear with an axis and no zero point.

**4 bits**, one scale for each group of G values of an output channel's flattened kernel: a = max |W| over the group and
Ŵ = a · level, the nearest of 16 levels in [-1, 1]:

- ``int4``: q / 7 for q ∈ {-7, …, 7}, so |Ŵ - W| ≤ a / 14;
- ``nf4``: QLoRA's quantiles of a normal distribution (Dettmers et al., arXiv 2305.14314, section 3 and appendix E), for
  weights that are spread like one: |Ŵ - W| ≤ 0.152 · a (half of the widest gap, at -1), a quarter of that near 0.

QLoRA flattens the whole tensor into its groups; here a group ends with its output channel, so that no channel's error
depends on its neighbours' size. Its double quantisation of the scales is left out: a float32 for 64 weights is half a
bit each.
"""

import torch

from audiolora.conv.factors import as_kernel, over_channels, stored

INT8_MOST = 127
"""The largest code; -128 is left out, so that the codes are symmetric."""

NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
"""QLoRA's levels, appendix E."""

INT4 = tuple(q / 7 for q in range(-8, 8))
"""The levels of symmetric int4; the first is never the nearest."""

LEVELS = {"nf4": NF4, "int4": INT4}


def quantize_int8(weight: torch.Tensor, transposed_groups: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """q, int8 in W's shape and order, and s (C_out,) float32.

    Args:
        weight: W, floating-point, stored as its module stores it.
        transposed_groups: as in `conv.factors.LowRank`.

    Example:
        >>> q, scale = quantize_int8(torch.tensor([[1.0, -0.5], [0.0, 0.0]]))
        >>> q.tolist(), round(scale[0].item() * 127, 6)
        ([[127, -64], [0, 0]], 1.0)
    """
    work = weight.detach().to(torch.promote_types(weight.dtype, torch.float32))
    largest = as_kernel(work, transposed_groups).flatten(1).abs().amax(1)
    # Not below the smallest normal number: a channel of zeros divides 0 by it, and denormals may be flushed to 0.
    scale = (largest / INT8_MOST).float().clamp_min(torch.finfo(torch.float32).tiny)
    q = work / over_channels(scale.to(work.dtype), work, transposed_groups)
    return q.round_().clamp_(-INT8_MOST, INT8_MOST).to(torch.int8), scale


def dequantize_int8(
    q: torch.Tensor,
    scale: torch.Tensor,
    transposed_groups: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Ŵ = s · q, in q's shape and order: a new tensor of ``dtype``, computed in float32 or better.

    Example:
        >>> W = torch.randn(6, 4, 3)
        >>> q, scale = quantize_int8(W)
        >>> bool(((dequantize_int8(q, scale) - W).abs() <= 0.51 * scale[:, None, None]).all())
        True
    """
    work = torch.promote_types(dtype, torch.float32)
    return q.to(work).mul_(over_channels(scale.to(work), q, transposed_groups)).to(dtype)


def group_of(columns: int, group_size: int) -> int:
    """The values that share a scale: ``group_size``, or all K of a channel that has no more."""
    return min(group_size, columns)


def quantize_4bit(
    weight: torch.Tensor, kind: str = "nf4", group_size: int = 64, transposed_groups: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Two codes a byte, uint8 (C_out, ⌈K/2⌉), and a (C_out, ⌈K/G⌉) float32.

    Args:
        weight: W, floating-point, stored as its module stores it.
        kind: of `LEVELS`.
        group_size: G.
        transposed_groups: as in `conv.factors.LowRank`.

    Example:
        >>> codes, scale = quantize_4bit(torch.randn(6, 4, 3), group_size=8)
        >>> codes.shape, scale.shape
        (torch.Size([6, 6]), torch.Size([6, 2]))
    """
    work = weight.detach().to(torch.promote_types(weight.dtype, torch.float32))
    kernel = as_kernel(work, transposed_groups).flatten(1)
    groups = _in_groups(kernel, group_of(kernel.shape[1], group_size))
    scale = groups.abs().amax(2).float().clamp_min(torch.finfo(torch.float32).tiny)
    levels = torch.tensor(LEVELS[kind], dtype=work.dtype, device=work.device)
    between = (levels[1:] + levels[:-1]) / 2
    codes = torch.bucketize((groups / scale.to(work.dtype)[:, :, None]).contiguous(), between)
    return pack_4bit(codes.flatten(1)[:, : kernel.shape[1]].to(torch.uint8)), scale


def dequantize_4bit(
    packed: torch.Tensor,
    scale: torch.Tensor,
    shape: torch.Size | tuple[int, ...],
    kind: str = "nf4",
    group_size: int = 64,
    transposed_groups: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Ŵ of ``shape`` as its module stores it: a new tensor of ``dtype``, computed in float32 or better.

    Example:
        >>> W = torch.randn(6, 4, 3)
        >>> Ŵ = dequantize_4bit(*quantize_4bit(W, group_size=8), W.shape, group_size=8)
        >>> bool(((Ŵ - W).abs() <= 0.152 * W.abs().amax()).all())
        True
    """
    work = torch.promote_types(dtype, torch.float32)
    kernel_shape = as_kernel(torch.empty(shape, device="meta"), transposed_groups).shape
    columns = kernel_shape[1:].numel()
    levels = torch.tensor(LEVELS[kind], dtype=work, device=packed.device)
    kernel = levels[unpack_4bit(packed)[:, :columns].int()]
    groups = _in_groups(kernel, group_of(columns, group_size))
    kernel = (groups * scale.to(work)[:, :, None]).flatten(1)[:, :columns]
    return stored(kernel.reshape(kernel_shape), transposed_groups).to(dtype)


def pack_4bit(codes: torch.Tensor) -> torch.Tensor:
    """Codes 0 to 15, uint8 (…, n), two a byte (…, ⌈n/2⌉): the first in the low half; an odd last one is alone.

    Example:
        >>> pack_4bit(torch.tensor([[1, 2, 15]], dtype=torch.uint8)).tolist()
        [[33, 15]]
    """
    if codes.shape[-1] % 2:
        codes = torch.nn.functional.pad(codes, (0, 1))
    return codes[..., ::2] | codes[..., 1::2] << 4


def unpack_4bit(packed: torch.Tensor) -> torch.Tensor:
    """The codes (…, 2n) of n bytes (…, n): the inverse of `pack_4bit`, but for what it padded.

    Example:
        >>> unpack_4bit(torch.tensor([[33, 15]], dtype=torch.uint8)).tolist()
        [[1, 2, 15, 0]]
    """
    return torch.stack((packed & 15, packed >> 4), dim=-1).flatten(-2)


def _in_groups(kernel: torch.Tensor, group: int) -> torch.Tensor:
    """(C_out, K) as (C_out, ⌈K/G⌉, G), zeros after the end."""
    padded = torch.nn.functional.pad(kernel, (0, -kernel.shape[1] % group))
    return padded.unflatten(1, (-1, group))
