"""What training an adapted weight costs, and which of two ways to its gradients is the cheaper one.

- ``low-rank``: four products with r rows (z, ∂z, ∂A, ∂B); the dense ∂W is never formed.
- ``dense``: ∂W as in full fine-tuning, then projected: ∂B = s·∂W·Aᵀ, ∂A = s·Bᵀ·∂W. Cheaper where r is not small
  against the channels of a group: depthwise convolutions, embeddings of a few variables, InceptionTime.
"""

from collections.abc import Sequence
from enum import StrEnum
from functools import lru_cache
from math import prod

from audiolora.conv.geometry import ConvGeometry

DENSE_SPEED = 3
"""How many multiply-adds a dense ∂W does while a product with r rows does one; measured at 1.5 to 4 on CPU."""


class Path(StrEnum):
    """A way to the factors' gradients."""

    LOW_RANK = "low-rank"
    DENSE = "dense"


def low_rank_cost(weight_shape: Sequence[int], r: int, geometry: ConvGeometry) -> int:
    """Multiply-adds of the four products a position of the convolution's short side.

    z and ∂A go over every input (C_in · k rows of the kernel), ∂z and ∂B over every output (C_out).

    Args:
        weight_shape: (C_out, C_in/g, k), (C_in, C_out/g, k) if transposed, or a Linear's (out, in).
        r: the rank.
        geometry: of the convolution; `ConvGeometry()` for a Linear.
    """
    g, k = geometry.groups, prod(weight_shape[2:])
    if geometry.transposed:  # its output is `stride` times as long as its input
        return 2 * r * (weight_shape[0] * k + weight_shape[1] * g * geometry.stride)
    return 2 * r * (weight_shape[1] * g * k * geometry.stride + weight_shape[0])


@lru_cache(maxsize=4096)
def gradient_path(weight_shape: Sequence[int], r: int, geometry: ConvGeometry) -> Path:
    """The cheaper way; arguments as in `low_rank_cost`.

    Example:
        >>> gradient_path((384, 384, 3), 8, ConvGeometry(stride=2, padding=1)).value  # Whisper-tiny's conv2
        'low-rank'
        >>> gradient_path((256, 1, 31), 8, ConvGeometry(padding=15, groups=256)).value  # depthwise, in a Conformer
        'dense'
    """
    low_rank = low_rank_cost(weight_shape, r, geometry)
    return Path.LOW_RANK if low_rank * DENSE_SPEED < prod(weight_shape) else Path.DENSE


def training_overhead(weight_shape: Sequence[int], r: int, geometry: ConvGeometry, path: Path) -> float:
    """Extra multiply-adds of a training step as a share of the frozen layer's forward and input gradient.

    A frozen layer does 2 · C_out · (C_in/g) · k a position; the dense ∂W is half of that. Arguments as in
    `low_rank_cost`.

    Example:
        >>> round(training_overhead((384, 80, 3), 8, ConvGeometry(), Path.LOW_RANK), 3)  # Whisper-tiny's conv1
        0.054
    """
    dense = prod(weight_shape)
    return (low_rank_cost(weight_shape, r, geometry) if path is Path.LOW_RANK else dense) / (2 * dense)


CACHE_BYTES = 4 << 20
"""Of one activation of a chunk of devices on CPU: a step's activations then come from the cache, and the allocator."""

ACCELERATOR_BYTES = 256 << 20
"""The same on an accelerator, where large batches are what is fast."""

DEVICES_AT_MOST = {"cpu": 64, "cuda": 4096}


def devices_at_once(activation_bytes: int, device_type: str) -> int:
    """How many devices of a fleet go through the network together.

    Args:
        activation_bytes: of the largest activation that one device's batch makes in an adapted module.
        device_type: ``"cpu"`` or an accelerator's.

    Example:
        >>> devices_at_once(4 * 64 * 192 * 4, "cpu")  # 4 samples of 64 channels, 192 long
        21
    """
    whole = CACHE_BYTES if device_type == "cpu" else ACCELERATOR_BYTES
    return max(1, min(whole // max(1, activation_bytes), DEVICES_AT_MOST.get(device_type, 1024)))
