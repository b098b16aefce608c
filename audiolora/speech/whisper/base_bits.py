"""A Whisper whose frozen weights are kept in 8 or 4 bits, in training, on disk and in decoding alike."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    from torch import nn

BaseBits = Literal[32, 8, 4]


def check_base_bits(bits: int) -> None:
    """Raise a ValueError for bits that are none of 32, 8 and 4."""
    if bits not in get_args(BaseBits):
        raise ValueError(f"base_bits must be 32, 8 or 4, got {bits!r}")


def quantize_base(model: nn.Module, bits: int) -> None:
    """Keep the weights of a model's convolutions and linear maps in few bits, in place; 32 leaves them as they are.

    It is `audiolora.quantize`, on any device: an output layer whose weight is the embedding's stays as it is.

    Args:
        model: without adapters.
        bits: 32, 8 or 4.

    Raises:
        ValueError: other bits, or weights that cannot be quantised.

    Example:
        >>> import torch
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 4))
        >>> quantize_base(net, 8)
        >>> net.state_dict()["0.parametrizations.weight.original"].dtype
        torch.int8
    """
    from audiolora.quantizing import quantize

    check_base_bits(bits)
    if bits != 32:
        quantize(model, bits=bits)
