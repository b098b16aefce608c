"""Starts of LoRA's factors from a weight or a gradient, as matrices: A (r, K) and B (C_out, r), K = C_in/g · k.

    PiSSA    (arXiv 2404.02948)  s·B·A = U_r·S_r·V_r, the r largest parts of W's singular value decomposition
    OLoRA    (arXiv 2406.01775)  B·A = Q_r·R_r, the first r columns and rows of W's QR decomposition
    LoftQ    (arXiv 2310.08659)  s·B·A = the rank-r part of W - Q, Q = W - s·B·A quantised, alternating
    LoRA-GA  (arXiv 2407.05000)  A and B are singular vectors of the loss's gradient ∂W
    orthogonal                   random A and B with B·A = 0 (each from the other half of one orthogonal matrix)

Where we differ from PEFT: matrices are decomposed in float64, and whole, so that a start is the same function of W each
time (``pissa_niter_N`` draws from a seed of its own); PEFT's LoftQ leaves s out, and adds s·B·A to the quantised weight
all the same.
"""

import torch

from audiolora.conv.quantized import dequantize_4bit, dequantize_int8, quantize_4bit, quantize_int8


def principal(W: torch.Tensor, r: int, scaling: float, niter: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """PiSSA's A and B.

    Args:
        W: (C_out, K).
        r: the rank, at most min(C_out, K).
        scaling: s.
        niter: of a randomised decomposition (Halko et al., arXiv 0909.4061); None for the exact one.

    Example:
        >>> W = torch.diag(torch.tensor([9.0, 4.0, 1.0]))
        >>> A, B = principal(W, r=1, scaling=1.0)
        >>> (B @ A).diag()
        tensor([9., 0., 0.], dtype=torch.float64)
    """
    W = W.double()
    if niter is None:
        U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    else:
        # On the CPU, whose generator alone is seeded, and put back: an accelerator would draw other numbers.
        with torch.random.fork_rng(devices=[]):
            torch.random.default_generator.manual_seed(0)
            U, S, V = (part.to(W.device) for part in torch.svd_lowrank(W.cpu(), r, niter=niter))
        Vh = V.mT
    root = (S[:r] / abs(scaling)).sqrt()
    return root[:, None] * Vh[:r], U[:, :r] * root * (1 if scaling > 0 else -1)


def first_columns(W: torch.Tensor, r: int) -> tuple[torch.Tensor, torch.Tensor]:
    """OLoRA's A and B of W (C_out, K)."""
    Q, R = torch.linalg.qr(W.double())
    return R[:r], Q[:, :r]


def orthogonal(out: int, columns: int, r: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A and B with B·A = 0; r is even. Drawn as PEFT draws them."""
    Q, _ = torch.linalg.qr(torch.randn(r, r))
    A = torch.randn(columns, r // 2).mm(Q[0::2]).T / 10.0
    return A, torch.randn(r // 2, out).T.mm(Q[1::2]) / 10.0


def of_gradient(
    gradient: torch.Tensor, W: torch.Tensor, r: int, scaling: float, direction: str, scale: str, stable_gamma: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """LoRA-GA's A and B.

    Args:
        gradient: ∂W (C_out, K).
        W: (C_out, K).
        r: the rank; 2·r at most min(C_out, K).
        scaling: s.
        direction, scale, stable_gamma: of PEFT's ``LoraGAConfig``.
    """
    U, S, Vh = torch.linalg.svd(gradient.double(), full_matrices=False)
    if direction == "random":
        order = torch.randperm(2 * r)[:r]
        of_A, of_B = order, order
    else:
        halves = torch.arange(r), torch.arange(r, 2 * r)
        alternating = torch.arange(1, 2 * r, 2), torch.arange(0, 2 * r, 2)
        of_A, of_B = {"ArBr": alternating, "A2rBr": halves[::-1], "ArB2r": halves}[direction]
    A, B = Vh[of_A], U[:, of_B] * S[of_B]
    if scale == "stable":
        B = B * len(W) ** 0.25 / stable_gamma**0.5
    elif scale == "weight_svd" and S[of_B[0]] > 0:
        B = B * torch.linalg.matrix_norm(W.double(), 2) / S[of_B[0]]
    elif scale == "gd_scale":
        A, B = A / scaling, B / scaling
    return A, B


def of_quantisation(
    W: torch.Tensor, r: int, scaling: float, bits: int, iterations: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """LoftQ's A and B, and the quantised weight Q (C_out, K) that they are on top of.

    Args:
        W: (C_out, K).
        r: the rank, at most min(C_out, K).
        scaling: s.
        bits: 8 (a scale for each output channel) or 4 (NF4, a scale for each 64 numbers of an output channel).
        iterations: how often both are found anew.
    """
    W = W.double()
    low_rank = torch.zeros_like(W)
    for _ in range(iterations):
        Q = rounded_to(W - low_rank, bits)
        A, B = principal(W - Q, r, scaling)
        low_rank = scaling * B @ A
    return A, B, Q


def rounded_to(W: torch.Tensor, bits: int) -> torch.Tensor:
    """W (C_out, K) as `conv.quantized` reads it back; arguments as in `of_quantisation`."""
    if bits == 8:
        return dequantize_int8(*quantize_int8(W), dtype=W.dtype)
    return dequantize_4bit(*quantize_4bit(W), W.shape, dtype=W.dtype)
