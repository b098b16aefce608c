"""What training an adapted weight costs, and which of two ways to its gradients is the cheaper one.

- ``low-rank``: four products with r rows (z, ∂z, ∂A, ∂B); the dense ∂W is never formed.
- ``dense``: ∂W as in full fine-tuning, then projected: ∂B = s·∂W·Aᵀ, ∂A = s·Bᵀ·∂W. Cheaper where r is not small
  against the channels of a group: depthwise convolutions, embeddings of a few variables, InceptionTime.
"""

from collections.abc import Sequence
from enum import StrEnum
from math import prod

from audiolora.conv.geometry import ConvGeometry

DENSE_SPEED = 2.0
"""How many multiply-adds a dense ∂W does while a product with r rows does one; measured at 1.5 to 3 on CPU."""


class Path(StrEnum):
    """A way to the factors' gradients."""

    LOW_RANK = "low-rank"
    DENSE = "dense"


def gradient_path(weight_shape: Sequence[int], r: int, geometry: ConvGeometry) -> Path:
    """The cheaper way, by its multiply-adds a position of the convolution's short side.

    Args:
        weight_shape: (C_out, C_in/g, k), or (C_in, C_out/g, k) if transposed.
        r: the rank.
        geometry: of the convolution.

    Example:
        >>> gradient_path((384, 384, 3), 8, ConvGeometry(stride=2, padding=1)).value  # Whisper-tiny's conv2
        'low-rank'
        >>> gradient_path((256, 1, 31), 8, ConvGeometry(padding=15, groups=256)).value  # depthwise, in a Conformer
        'dense'
    """
    k, g = weight_shape[2], geometry.groups
    if geometry.transposed:
        # Products with A over the input, with B over the output, which is `stride` times as long.
        low_rank = 2 * r * (weight_shape[0] * k + weight_shape[1] * g * geometry.stride)
    else:
        low_rank = 2 * r * (weight_shape[1] * g * k * geometry.stride + weight_shape[0])
    return Path.LOW_RANK if low_rank < prod(weight_shape) / DENSE_SPEED else Path.DENSE


def training_overhead(weight_shape: Sequence[int], r: int, groups: int = 1) -> float:
    """Extra multiply-adds of a fused training step as a share of the frozen layer's forward and input gradient.

    A frozen layer does 2 · C_out · (C_in/g) · k a position. The factors add four products (z, ∂B, ∂z, ∂A), the first
    and the last once a group: 2 · g · r · (C_in/g) · k + 2 · r · C_out. A Linear is k = 1.

    Args:
        weight_shape: (C_out, C_in/g, k) or, for a Linear, (out, in).
        r: the rank.
        groups: g.

    Example:
        >>> round(training_overhead((384, 384, 3), r=8), 3)  # Whisper-tiny's conv2
        0.028
    """
    out_channels, in_times_k = weight_shape[0], 1
    for size in weight_shape[1:]:
        in_times_k *= size
    return r * (groups * in_times_k + out_channels) / (out_channels * in_times_k)
