"""What a 1-D convolution is, apart from its weights."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class ConvGeometry:
    """Stride, symmetric zero padding, dilation and groups of a 1-D convolution, as plain integers.

    Every other padding (causal, circular, reflect, replicate, the odd half of ``"same"``) happens to the input before
    the convolution, so these numbers are all that a convolution still has to know.

    A convolution and its transpose join the same pairs of positions: tap j joins t on the short side with
    u = t · stride + j · dilation - padding on the long one. The short side is an ordinary convolution's output, and a
    transposed one's input.

    Raises:
        ValueError: stride, dilation or groups below 1, negative padding, or an output padding that torch has no
            meaning for.

    Example:
        >>> ConvGeometry(stride=2, padding=1).output_length(100, kernel_size=3)
        50
        >>> ConvGeometry(stride=2, padding=1, transposed=True, output_padding=1).output_length(50, kernel_size=3)
        100
    """

    stride: int = 1
    padding: int = 0
    dilation: int = 1
    groups: int = 1
    transposed: bool = False
    output_padding: int = 0

    def __post_init__(self) -> None:
        for name in ("stride", "dilation", "groups"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("padding", "output_padding"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.output_padding and not (self.transposed and self.output_padding < max(self.stride, self.dilation)):
            raise ValueError(
                f"output_padding={self.output_padding} is for transposed convolutions, below the stride or the "
                f"dilation; here stride={self.stride}, dilation={self.dilation}, transposed={self.transposed}"
            )

    @property
    def transposed_groups(self) -> int | None:
        """g if the kernel is stored (C_in, C_out/g, k), None if (C_out, C_in/g, k); see `conv.factors`."""
        return self.groups if self.transposed else None

    def output_length(self, length: int, kernel_size: int) -> int:
        """L_out for an input of ``length`` samples."""
        reach = self.dilation * (kernel_size - 1)
        if self.transposed:
            return (length - 1) * self.stride - 2 * self.padding + reach + self.output_padding + 1
        return (length + 2 * self.padding - reach - 1) // self.stride + 1

    def tap(self, j: int, short: int, long: int) -> tuple[slice, slice]:
        """The positions that tap j joins: of the short side (``short`` samples) and of the long one."""
        offset = j * self.dilation - self.padding
        first = max(0, -(offset // self.stride))
        last = min(short, (long - 1 - offset) // self.stride + 1)
        if last <= first:
            return slice(0, 0), slice(0, 0)
        start = first * self.stride + offset
        return slice(first, last), slice(start, start + (last - first - 1) * self.stride + 1, self.stride)


def first(value: int | tuple[int, ...] | list[int]) -> int:
    """The one number of a 1-D setting that torch may hold as ``3`` or as ``(3,)``."""
    return value[0] if isinstance(value, (tuple, list)) else value


def resolve_padding(
    x: torch.Tensor, kernel_size: int, stride: Any, padding: Any, dilation: Any, groups: int
) -> tuple[torch.Tensor, ConvGeometry]:
    """The arguments of ``F.conv1d`` as a geometry; ``"same"`` and ``"valid"`` become numbers.

    torch pads an odd ``"same"`` total with its extra zero on the right; a convolution's own padding is symmetric, so
    that zero is put onto x here.

    Args:
        x: (..., C_in, L).
        kernel_size: k.
        stride, padding, dilation, groups: as ``F.conv1d`` takes them.

    Returns:
        x, perhaps one sample longer, and the geometry.

    Raises:
        ValueError: ``padding="same"`` with a stride (torch's own rule), or an unknown padding name.
    """
    stride, dilation = first(stride), first(dilation)
    if not isinstance(padding, str):
        return x, ConvGeometry(stride, first(padding), dilation, groups)
    if padding == "valid":
        return x, ConvGeometry(stride, 0, dilation, groups)
    if padding != "same":
        raise ValueError(f"padding must be a number, 'same' or 'valid', got {padding!r}")
    if stride != 1:
        raise ValueError(f"padding='same' is not defined for strided convolutions, got stride={stride}")
    total = dilation * (kernel_size - 1)
    return F.pad(x, (0, total % 2)), ConvGeometry(1, total // 2, dilation, groups)
