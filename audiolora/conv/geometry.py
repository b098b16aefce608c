"""What a 1-D convolution is, apart from its weights."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class ConvGeometry:
    """Stride, symmetric zero padding, dilation and groups of a 1-D convolution, as plain integers.

    Every other padding (causal, circular, reflect, replicate, the odd half of ``"same"``) happens to the input before
    the convolution, so these four numbers are all that a convolution still has to know.

    Raises:
        ValueError: stride, dilation or groups below 1, or negative padding.

    Example:
        >>> ConvGeometry(stride=2, padding=1).output_length(100, kernel_size=3)
        50
    """

    stride: int = 1
    padding: int = 0
    dilation: int = 1
    groups: int = 1

    def __post_init__(self) -> None:
        for name in ("stride", "dilation", "groups"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.padding < 0:
            raise ValueError(f"padding must not be negative, got {self.padding}")

    def output_length(self, length: int, kernel_size: int) -> int:
        """L_out for an input of ``length`` samples."""
        return (length + 2 * self.padding - self.dilation * (kernel_size - 1) - 1) // self.stride + 1


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
