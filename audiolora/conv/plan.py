"""What training an adapted weight costs, against the frozen layer it sits in."""

from collections.abc import Sequence


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
