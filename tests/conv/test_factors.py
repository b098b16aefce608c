"""The formulas against NumPy's einsum, and the corners where they divide or round."""

from __future__ import annotations

import numpy as np
import torch

from audiolora.conv.factors import (
    LowRank,
    adapted_weight,
    as_kernel,
    channel_norm,
    combined,
    inverse_norm,
    inverse_norms,
    lora_delta,
)


def term(r: int = 2, dtype: torch.dtype = torch.float64, scaling: float = 0.75) -> LowRank:
    generator = torch.Generator().manual_seed(0)
    A = torch.randn(r, 3, 5, generator=generator, dtype=torch.float64)
    B = torch.randn(4, r, generator=generator, dtype=torch.float64)
    return LowRank(A.to(dtype), B.to(dtype), scaling)


def test_lora_delta_is_the_product() -> None:
    low = term()
    expected = 0.75 * np.einsum("or,rck->ock", low.B.numpy(), low.A.numpy())
    np.testing.assert_allclose(lora_delta(low).numpy(), expected, rtol=1e-12)


def test_lora_delta_of_bf16_factors_is_rounded_once() -> None:
    low = term(dtype=torch.bfloat16)
    exact = 0.75 * np.einsum("or,rck->ock", low.B.double().numpy(), low.A.double().numpy())
    np.testing.assert_allclose(lora_delta(low, torch.float32).numpy(), exact, rtol=1e-5, atol=1e-6)
    assert lora_delta(low).dtype == torch.bfloat16
    assert torch.equal(lora_delta(low), lora_delta(low, torch.float32).bfloat16())


def test_channel_norm_is_over_each_output_channel() -> None:
    W = torch.randn(4, 3, 5, dtype=torch.float64)
    expected = np.linalg.norm(W.numpy().reshape(4, -1), axis=1)
    np.testing.assert_allclose(channel_norm(W).numpy(), expected, rtol=1e-12)
    assert channel_norm(W.bfloat16()).dtype == torch.float32


def test_inverse_norm_is_zero_where_there_is_nothing() -> None:
    V = torch.randn(4, 3, 5, dtype=torch.float64)
    V[2] = 0
    expected = 1 / np.linalg.norm(V.numpy().reshape(4, -1), axis=1, keepdims=False, ord=2)[[0, 1, 3]]
    np.testing.assert_allclose(inverse_norm(V)[[0, 1, 3]].numpy(), expected, rtol=1e-12)
    assert inverse_norm(V)[2] == 0


def test_dora_s_norm_is_a_constant_in_backward() -> None:
    """Section 4.3 of the paper: ∂B = ∂W'·c·Aᵀ, without the norm's own derivative."""
    low, W = term(), torch.randn(4, 3, 5, dtype=torch.float64)
    A, B, m = (t.requires_grad_() for t in (low.A, low.B, torch.arange(1.0, 5.0, dtype=torch.float64)))
    V = W + 0.75 * torch.einsum("or,rck->ock", B, A)
    norms = torch.from_numpy(np.linalg.norm(V.detach().numpy().reshape(4, -1), axis=1))
    adapted = adapted_weight(W, low, m)
    torch.testing.assert_close(adapted, V * (m / norms)[:, None, None])
    wanted = torch.autograd.grad((V * (m / norms)[:, None, None]).sin().sum(), [A, B, m])
    for gradient, want in zip(torch.autograd.grad(adapted.sin().sum(), [A, B, m]), wanted, strict=True):
        torch.testing.assert_close(gradient, want)


def test_a_transposed_weight_holds_the_same_kernel_the_other_way_round() -> None:
    """ΔW[g·i, o] = Σ_r s · B[g·o, r] · A[r, i], for C_in = 6 in two groups of three and C_out = 4."""
    low = term()
    transposed = LowRank(low.A, low.B, low.scaling, transposed_groups=2)
    B = low.B.numpy().reshape(2, 2, 2)
    expected = 0.75 * np.einsum("gor,rik->giok", B, low.A.numpy()).reshape(6, 2, 5)
    np.testing.assert_allclose(lora_delta(transposed).numpy(), expected, rtol=1e-12)
    assert torch.equal(as_kernel(lora_delta(transposed), 2), lora_delta(low))
    assert torch.equal(channel_norm(lora_delta(transposed), 2), channel_norm(lora_delta(low)))


def test_combined_terms_are_their_sum() -> None:
    one, two = term(r=2), term(r=3, scaling=-2.0)
    torch.testing.assert_close(lora_delta(combined([one, two])), lora_delta(one) + lora_delta(two))


def test_the_norms_of_many_adapters_are_those_of_each() -> None:
    terms = [term(), LowRank(torch.randn(2, 3, 5).double(), torch.randn(4, 2).double(), 0.75)]
    W = torch.randn(4, 3, 5, dtype=torch.float64)
    A, B = torch.stack([t.A for t in terms]), torch.stack([t.B * t.scaling for t in terms])
    expected = [np.linalg.norm((W + lora_delta(t)).numpy().reshape(4, -1), axis=1) for t in terms]
    np.testing.assert_allclose(1 / inverse_norms(W, A, B).numpy(), np.stack(expected), rtol=1e-10)
    nothing = torch.zeros_like(W)
    assert not inverse_norms(nothing, A, torch.zeros_like(B)).any(), "a pruned channel stays zero"


def test_a_norm_that_nearly_cancels_is_as_exact_as_its_sum() -> None:
    """Pointwise depthwise kernels are one number each, and an update may take nearly all of it away."""
    generator = torch.Generator().manual_seed(0)
    A, B = torch.randn(1, 8, 1, 1, generator=generator), torch.randn(1, 64, 8, generator=generator)
    W = 1e-3 - B[0] @ A[0, :, 0]
    V = W.double()[:, :, None] + (B[0].double() @ A[0, :, 0].double())[:, :, None]
    exact = 1 / V.flatten(1).norm(dim=1)
    torch.testing.assert_close(inverse_norms(W[:, :, None], A, B)[0].double(), exact, rtol=3e-3, atol=0)
