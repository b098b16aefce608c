"""From an adapter's factors to an adapted weight: W' = f(W; θ). Each formula stands here and nowhere else.

LoRA (Hu et al., arXiv 2106.09685), on a kernel taken as the matrix (C_out, C_in/g · k):

    ΔW = s · (B · A.reshape(r, C_in/g · k)).reshape(C_out, C_in/g, k),        A (r, C_in/g, k), B (C_out, r)

With groups the factors are shared: one A serves every group, so any rank is legal and a depthwise kernel costs
C·r + r·k parameters. PEFT instead splits B by groups, which ties the rank to g and makes the merge impossible.

A transposed convolution has the same factors over the same kernel; torch only stores it the other way round, as
(C_in, C_out/g, k). So its B, DoRA's m and DoRA's norm belong to output channels there too. (torch's weight_norm and
PEFT's DoRA, by their default axis, would take its input channels.)

DoRA (Liu et al., arXiv 2402.09353), with m (C_out,) and the norm over each output channel's kernel:

    W' = c · V,   V = W + ΔW,   c = m / ‖V‖         ‖V‖ is a constant in backward (section 4.3 of the paper)

AdaLoRA (Zhang et al., arXiv 2303.10512), with the singular values λ (r,) that its budget sets to zero one by one:

    ΔW = s · (P · diag(λ) · Q).reshape(C_out, C_in/g, k),        P (C_out, r), Q (r, C_in/g · k)

Geometric parametrisation, with a length r (C_out,) and a direction θ like W, of length 1 at the start. Weight norm
(Salimans and Kingma, arXiv 1602.07868) is the same map with θ = W at the start:

    W = r · θ / ‖θ‖         differentiated through ‖θ‖, unlike DoRA's

LoHa (FedPara, Hyeon-Woo et al., arXiv 2108.06098, proposition 1), ∘ the elementwise product of two low-rank matrices:

    ΔW = s · (L₁·R₁) ∘ (L₂·R₂)                      L (C_out, r), R (r, C_in/g · k): a rank of up to r²

LoKr (Yeh et al., arXiv 2309.14859), ⊗ the Kronecker product, its right side whole or of rank r:

    ΔW = s · w₁ ⊗ w₂                                w₁ (a, c), w₂ (b, d·k), a·b = C_out, c·d = C_in/g
    ΔW = s · w₂ ⊗ w₁  where w₂ (b, d, k) is whole   as PEFT has it, whose files mean the same here

Tucker factors of a long kernel (FedPara, proposition 3; CP in LyCORIS): R = A goes through a core, 1×1 · k · 1×1:

    A[i, c, t] = Σ_j G[i, j, t] · U[j, c]           G (r, q, k), U (q, C_in/g): r·q·k instead of r·(C_in/g)·k numbers
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from audiolora.conv.native import plus_product, product, without_autocast
from audiolora.conv.packed import PackedWeight, Weight


@dataclass(frozen=True)
class LowRank:
    """One low-rank term s·B·A of a weight.

    Args:
        A: (r, C_in/g, k); over a Linear's weight (r, in).
        B: (C_out, r).
        scaling: s; PEFT makes it a tensor for compiled models whose adapters are swapped.
        transposed_groups: g where the weight is a transposed convolution's, (C_in, C_out/g, k); else None.
    """

    A: torch.Tensor
    B: torch.Tensor
    scaling: float | torch.Tensor
    transposed_groups: int | None = None


def svd_term(
    P: torch.Tensor,
    values: torch.Tensor,
    Q: torch.Tensor,
    scaling: float,
    kernel_shape: Sequence[int],
    transposed_groups: int | None = None,
) -> LowRank:
    """AdaLoRA's s·P·diag(λ)·Q as a low-rank term: A = diag(λ)·Q in the kernel's shape, B = P.

    Args:
        P: (C_out, r), the left singular vectors.
        values: λ, r elements in any shape.
        Q: (r, C_in/g · k), the right singular vectors.
        scaling: s.
        kernel_shape: (C_out, C_in/g, k), or (out, in) for a Linear's weight.
        transposed_groups: as in `LowRank`.

    Example:
        >>> svd_term(torch.ones(4, 2), torch.zeros(2), torch.ones(2, 15), 0.5, (4, 3, 5)).A.shape
        torch.Size([2, 3, 5])
    """
    A = (Q * values.view(-1, 1)).view(Q.shape[0], *kernel_shape[1:])
    return LowRank(A, P, scaling, transposed_groups)


def combined(terms: Sequence[LowRank]) -> LowRank:
    """Their sum as one term: Σ s_i·B_i·A_i = [s_1·B_1 …] · [A_1; …].

    Example:
        >>> one = LowRank(torch.ones(2, 3, 5), torch.ones(4, 2), scaling=0.5)
        >>> combined([one, one]).A.shape, combined([one, one]).scaling
        (torch.Size([4, 3, 5]), 1.0)
    """
    if len(terms) == 1:
        return terms[0]
    A = torch.cat([term.A for term in terms])
    B = torch.cat([term.B * term.scaling for term in terms], dim=1)
    return LowRank(A, B, 1.0, terms[0].transposed_groups)


def lora_delta(term: LowRank, dtype: torch.dtype | None = None) -> torch.Tensor:
    """ΔW, stored as the weight is, in ``dtype`` (default: the factors' own).

    The product is taken in float32 or better: bf16 factors would lose what small ranks have to say.

    Example:
        >>> term = LowRank(torch.ones(2, 3, 5), torch.ones(4, 2), scaling=0.5)
        >>> lora_delta(term).shape, lora_delta(term).unique().item()
        (torch.Size([4, 3, 5]), 1.0)
    """
    return stored(_kernel_delta(term), term.transposed_groups).to(dtype or term.A.dtype)


def lora_weight(weight: Weight, term: LowRank) -> torch.Tensor:
    """W + ΔW in W's dtype: LoRA's adapted weight, and DoRA's direction V."""
    if isinstance(weight, PackedWeight):
        return _added_onto(weight.unpack(), term)
    work = torch.promote_types(term.A.dtype, torch.float32)
    if term.transposed_groups is None and weight.dtype == work and isinstance(term.scaling, float):
        A, B = term.A.to(work).flatten(1), term.B.to(work)
        return plus_product(weight.flatten(1), B, A, term.scaling).view_as(weight)
    delta = _kernel_delta(term).to(weight.dtype)
    if term.transposed_groups is None:
        recorded = torch.is_grad_enabled() and (delta.requires_grad or weight.requires_grad)
        return weight + delta if recorded else delta.add_(weight)
    delta = _in_stored_order(delta, term.transposed_groups)  # a view: the sum puts it right in the same pass
    return (weight.view(delta.shape) + delta).reshape(weight.shape)


def _added_onto(weight: torch.Tensor, term: LowRank) -> torch.Tensor:
    """W + ΔW in W's own memory, which nobody else may hold."""
    work = torch.promote_types(term.A.dtype, torch.float32)
    if term.transposed_groups is not None:
        delta = _in_stored_order(_kernel_delta(term).to(weight.dtype), term.transposed_groups)
        weight.view(delta.shape).add_(delta)
    elif weight.dtype == work:
        with without_autocast(weight):
            weight.flatten(1).addmm_(term.B.to(work) * term.scaling, term.A.to(work).flatten(1))
    else:
        weight.add_(_kernel_delta(term).to(weight.dtype))
    return weight


def through_core(core: torch.Tensor, inner: torch.Tensor) -> torch.Tensor:
    """A (r, C_in/g, k) of a Tucker core G (r, q, k) and its input factor U (q, C_in/g).

    Example:
        >>> through_core(torch.ones(2, 3, 5), torch.ones(3, 7)).shape
        torch.Size([2, 7, 5])
    """
    r, q, k = core.shape
    return (core.transpose(1, 2).reshape(r * k, q) @ inner).view(r, k, -1).transpose(1, 2)


@dataclass(frozen=True)
class Pair:
    """A matrix as a product: left (m, r) · right (r, n)."""

    left: torch.Tensor
    right: torch.Tensor

    def product(self) -> torch.Tensor:
        """(m, n), in float32 or better."""
        work = torch.promote_types(self.left.dtype, torch.float32)
        return self.left.to(work) @ self.right.to(work)


def loha_delta(first: Pair, second: Pair, scaling: float) -> torch.Tensor:
    """LoHa's ΔW as the matrix (C_out, C_in/g · k), in float32 or better.

    Example:
        >>> pair = Pair(torch.ones(4, 2), torch.ones(2, 15))
        >>> loha_delta(pair, pair, scaling=0.5).unique().item()
        2.0
    """
    return first.product() * (second.product() * scaling)


def loha_as_lora(first: Pair, second: Pair, scaling: float) -> tuple[torch.Tensor, torch.Tensor]:
    """LoHa's ΔW = B·A exactly, of rank r²: the products of every two columns, and of every two rows.

    Returns:
        A (r², C_in/g · k) and B (C_out, r²), the scaling in B.
    """
    B = (first.left.unsqueeze(2) * second.left.unsqueeze(1)).flatten(1)
    return (first.right.unsqueeze(1) * second.right).flatten(0, 1), B * scaling


def lokr_delta(w1: torch.Tensor, w2: torch.Tensor, scaling: float) -> torch.Tensor:
    """LoKr's ΔW as the matrix (a·b, c·d·k), in float32 or better.

    Args:
        w1: (a, c).
        w2: (b, d·k), the right side of the product; or (b, d, k), its left side.
        scaling: s.

    Example:
        >>> lokr_delta(torch.ones(2, 3), torch.ones(4, 10), scaling=0.5).shape
        torch.Size([8, 30])
    """
    work = torch.promote_types(w1.dtype, torch.float32)
    if w2.dim() == 2:
        return torch.kron(w1.to(work) * scaling, w2.to(work))
    swapped = w2.to(work)[:, None, :, None] * (w1.to(work) * scaling)[None, :, None, :, None]
    return swapped.reshape(len(w2) * len(w1), -1)


def lokr_as_lora(w1: torch.Tensor, w2: Pair, scaling: float) -> tuple[torch.Tensor, torch.Tensor]:
    """LoKr's ΔW = B·A exactly, of rank c·r: w₁ ⊗ (L·R) = (w₁ ⊗ L) · (1 ⊗ R).

    Returns:
        A (c·r, c·d·k) and B (a·b, c·r), the scaling in B.
    """
    ones = torch.eye(w1.shape[1], dtype=w1.dtype, device=w1.device)
    # contiguous: torch.kron takes no transposed matrix here
    return torch.kron(ones, w2.right.contiguous()), torch.kron(w1 * scaling, w2.left.contiguous())


def _kernel_delta(term: LowRank) -> torch.Tensor:
    """s·B·A (C_out, C_in/g, k), in float32 or better."""
    work = torch.promote_types(term.A.dtype, torch.float32)
    delta = product(term.B.to(work) * term.scaling, term.A.to(work).flatten(1))
    return delta.view(term.B.shape[0], *term.A.shape[1:])


def _in_stored_order(kernel: torch.Tensor, groups: int) -> torch.Tensor:
    """A kernel (C_out, C_in/g, k) as a view (g, C_in/g, C_out/g, k): a transposed convolution's order."""
    return kernel.unflatten(0, (groups, -1)).transpose(1, 2)


def stored(kernel: torch.Tensor, transposed_groups: int | None) -> torch.Tensor:
    """A kernel (C_out, C_in/g, k) as its convolution stores it; as it is, or (C_in, C_out/g, k) if transposed."""
    return kernel if transposed_groups is None else _in_stored_order(kernel, transposed_groups).flatten(0, 1)


def as_kernel(weight: torch.Tensor, transposed_groups: int | None) -> torch.Tensor:
    """A stored weight as (C_out, C_in/g, k): the inverse of `stored`."""
    if transposed_groups is None:
        return weight
    in_channels, out_per_group, k = weight.shape
    g = transposed_groups
    return weight.view(g, in_channels // g, out_per_group, k).transpose(1, 2).reshape(g * out_per_group, -1, k)


def channel_norm(weight: torch.Tensor, transposed_groups: int | None = None) -> torch.Tensor:
    """‖W‖ (C_out,) of each output channel's kernel, in float32 or better."""
    kernel = as_kernel(weight, transposed_groups)
    return torch.linalg.vector_norm(kernel.flatten(1).to(torch.promote_types(weight.dtype, torch.float32)), dim=1)


def over_channels(c: torch.Tensor, weight: torch.Tensor, transposed_groups: int | None = None) -> torch.Tensor:
    """c (C_out,) in a shape that multiplies each output channel's kernel of ``weight``."""
    if transposed_groups is None:
        return c.view(-1, *[1] * (weight.dim() - 1))
    g, (in_channels, out_per_group, _) = transposed_groups, weight.shape
    return c.view(g, 1, out_per_group).expand(g, in_channels // g, out_per_group).reshape(in_channels, -1, 1)


def inverse_norm(direction: torch.Tensor, transposed_groups: int | None = None) -> torch.Tensor:
    """1 / ‖V‖ (C_out,), a constant in backward; 0 where a channel is exactly zero (a pruned one), so that it stays so.

    Args:
        direction: V, stored as the weight is.
        transposed_groups: as in `LowRank`.
    """
    return _inverse(channel_norm(direction.detach(), transposed_groups))


@torch.no_grad()
def inverse_norms(
    weight: torch.Tensor, A: torch.Tensor, B: torch.Tensor, transposed_groups: int | None = None
) -> torch.Tensor:
    """1 / ‖W + B_n·A_n‖ (N, C_out) for many adapters, without forming any sum that is large.

    ‖W + BA‖² = ‖W‖² + 2·⟨WAᵀ, B⟩ + ⟨B·AAᵀ, B⟩, each channel by itself. A kernel of few numbers (pointwise and
    depthwise: one) may cancel against its update and leave only the roundings of that; there the sum is formed.

    Args:
        weight: W, stored as its convolution stores it.
        A, B: (N, r, C_in/g, k) and (N, C_out, r), B with its scaling.
        transposed_groups: as in `LowRank`.
    """
    work = torch.promote_types(weight.dtype, torch.float32)
    W, A, B = as_kernel(weight, transposed_groups).flatten(1).to(work), A.flatten(2).to(work), B.to(work)
    if W.shape[1] <= 2 * A.shape[1]:
        return _inverse((W + B @ A).norm(dim=2))
    squares = torch.linalg.vector_norm(W, dim=1).square() + ((2 * (W @ A.mT) + B @ (A @ A.mT)) * B).sum(2)
    return _inverse(squares.clamp_min(0).sqrt())


def _inverse(norm: torch.Tensor) -> torch.Tensor:
    return norm.reciprocal().nan_to_num_(nan=torch.nan, posinf=0.0)  # a norm that is not finite shows


def scaled(direction: torch.Tensor, c: torch.Tensor, transposed_groups: int | None = None) -> torch.Tensor:
    """c · V: DoRA's weight from its direction (stored as the weight is) and a factor (C_out,) for each channel."""
    return direction * over_channels(c.to(direction.dtype), direction, transposed_groups)


def geometric_weight(r: torch.Tensor, theta: torch.Tensor, transposed_groups: int | None = None) -> torch.Tensor:
    """W = r · θ/‖θ‖, stored as θ is and in its dtype; zero where a channel of θ is exactly zero.

    Args:
        r: (C_out,), of either sign.
        theta: θ, stored as the weight is.
        transposed_groups: as in `LowRank`.

    Example:
        >>> geometric_weight(torch.tensor([2.0]), torch.tensor([[3.0, 4.0]]))
        tensor([[1.2000, 1.6000]])
    """
    norm = channel_norm(theta, transposed_groups)
    return scaled(theta, r / norm.clamp_min(torch.finfo(norm.dtype).tiny), transposed_groups)


def length_and_direction(
    weight: torch.Tensor, transposed_groups: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """r (C_out,) and θ of length 1 that `geometric_weight` makes this weight of, to rounding.

    A channel that is exactly zero has no direction: it gets r = 0, and as θ the same number in every place, so that it
    stays zero and its r can learn.
    """
    norm = channel_norm(weight, transposed_groups)
    unit = scaled(weight, _inverse(norm), transposed_groups)
    none = over_channels(norm, weight, transposed_groups) == 0
    return norm.to(weight.dtype), unit.where(~none, (weight.numel() / norm.numel()) ** -0.5)


def adapted_weight(base: Weight, term: LowRank, magnitude: torch.Tensor | None = None) -> torch.Tensor:
    """W' in W's dtype: LoRA, or DoRA where a magnitude m (C_out elements in any shape) is given."""
    V = lora_weight(base, term)
    if magnitude is None:
        return V
    return scaled(V, magnitude.flatten() * inverse_norm(V, term.transposed_groups), term.transposed_groups)
