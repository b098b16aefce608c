"""A frozen weight that is kept in another form than the one it is convolved in."""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import torch


@dataclass(frozen=True)
class PackedWeight:
    """W of which only fewer bits are kept: every use makes it anew, and owns what it made.

    It stands where `conv.factors.lora_weight` and `conv.fused.fused_conv1d` take W, so that W' = W + ΔW is formed in
    the memory that W was unpacked into, and no backward keeps either.

    Args:
        shape, dtype, device: of W as a tensor.
        unpack: gives W, a new tensor at each call that nobody else holds.
    """

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device
    unpack: Callable[[], torch.Tensor]
    requires_grad: bool = False

    @property
    def is_meta(self) -> bool:
        """Whether it has no values yet."""
        return self.device.type == "meta"

    def blank(self) -> torch.Tensor:
        """A tensor of W's shape, dtype and device in the memory of one element."""
        return torch.zeros((), dtype=self.dtype, device=self.device).expand(self.shape)

    def dim(self) -> int:
        """Axes of W."""
        return len(self.shape)

    def numel(self) -> int:
        """Elements of W."""
        return prod(self.shape)


Weight = torch.Tensor | PackedWeight


def unpacked(weight: Weight) -> torch.Tensor:
    """The tensor; of a `PackedWeight`, a new one."""
    return weight.unpack() if isinstance(weight, PackedWeight) else weight
