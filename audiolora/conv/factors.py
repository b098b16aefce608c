"""From an adapter's factors to an adapted weight: W' = f(W; θ). Each formula stands here and nowhere else.

LoRA (Hu et al., arXiv 2106.09685), on a kernel taken as the matrix (C_out, C_in/g · k):

    ΔW = s · (B · A.reshape(r, C_in/g · k)).reshape(C_out, C_in/g, k),        A (r, C_in/g, k), B (C_out, r)

With groups the factors are shared: one A serves every group, so any rank is legal and a depthwise kernel costs
C·r + r·k parameters. PEFT instead splits B by groups, which ties the rank to g and makes the merge impossible.

DoRA (Liu et al., arXiv 2402.09353), with m (C_out,) and the norm over each output channel's kernel:

    W' = c · V,   V = W + ΔW,   c = m / ‖V‖         ‖V‖ is a constant in backward (section 4.3 of the paper)
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class LowRank:
    """One low-rank term s·B·A of a weight.

    Args:
        A: (r, C_in/g, k).
        B: (C_out, r).
        scaling: s.
    """

    A: torch.Tensor
    B: torch.Tensor
    scaling: float


def lora_delta(term: LowRank, dtype: torch.dtype | None = None) -> torch.Tensor:
    """ΔW (C_out, C_in/g, k) of a LoRA term, in ``dtype`` (default: the factors' own).

    The product is taken in float32 or better: bf16 factors would lose what small ranks have to say.

    Example:
        >>> term = LowRank(torch.ones(2, 3, 5), torch.ones(4, 2), scaling=0.5)
        >>> lora_delta(term).shape, lora_delta(term).unique().item()
        (torch.Size([4, 3, 5]), 1.0)
    """
    work = torch.promote_types(term.A.dtype, torch.float32)
    delta = (term.B.to(work) @ term.A.flatten(1).to(work)) * term.scaling
    return delta.view(term.B.shape[0], *term.A.shape[1:]).to(dtype or term.A.dtype)


def lora_weight(weight: torch.Tensor, term: LowRank) -> torch.Tensor:
    """W + ΔW (C_out, C_in/g, k) in W's dtype: LoRA's adapted weight, and DoRA's direction V."""
    return weight + lora_delta(term, weight.dtype)


def channel_norm(weight: torch.Tensor) -> torch.Tensor:
    """‖W‖ (C_out,) of each output channel's kernel, in float32 or better."""
    return weight.to(torch.promote_types(weight.dtype, torch.float32)).flatten(1).norm(dim=1)


def dora_scale(direction: torch.Tensor, magnitude: torch.Tensor) -> torch.Tensor:
    """c (C_out,) = m / ‖V‖ with the norm held constant in backward.

    A channel whose direction is exactly zero (a pruned one) keeps weight zero: c = 0 there, not 0/0.

    Args:
        direction: V (C_out, C_in/g, k).
        magnitude: m, any shape of C_out elements.
    """
    norm = channel_norm(direction.detach())
    inverse = torch.where(norm > 0, 1 / norm.clamp_min(torch.finfo(norm.dtype).tiny), torch.zeros_like(norm))
    return magnitude.flatten() * inverse
