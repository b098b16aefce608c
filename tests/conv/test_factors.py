"""The formulas against NumPy's einsum, and the corners where they divide or round."""

from __future__ import annotations

import numpy as np
import torch

from audiolora.conv.factors import LowRank, channel_norm, dora_scale, lora_delta


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


def test_dora_scale_is_magnitude_over_norm_and_zero_where_there_is_nothing() -> None:
    V = torch.randn(4, 3, 5, dtype=torch.float64).requires_grad_()
    with torch.no_grad():
        V[2] = 0
    m = torch.tensor([1.0, 2.0, 3.0, 0.0], dtype=torch.float64, requires_grad=True)
    scale = dora_scale(V, m.view(1, 4, 1))
    norms = V.detach().flatten(1).norm(dim=1)
    expected = torch.stack([1 / norms[0], 2 / norms[1], norms[2], norms[3] * 0])
    torch.testing.assert_close(scale.detach(), expected)
    scale.sum().backward()
    assert V.grad is None, "the norm is a constant in backward (DoRA, section 4.3)"
    torch.testing.assert_close(m.grad, torch.stack([1 / norms[0], 1 / norms[1], norms[2], 1 / norms[3]]))
