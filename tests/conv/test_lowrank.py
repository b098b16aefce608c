"""The products over shifted views in low precision: as near as one convolution in that precision."""

from __future__ import annotations

import pytest
import torch

from audiolora.conv.geometry import ConvGeometry
from audiolora.conv.lowrank import lowrank_grad_A, lowrank_project


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_hundred_taps_in_low_precision(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    x, A = (
        torch.randn(4, 48, 150, generator=generator).to(dtype),
        torch.randn(8, 48, 128, generator=generator).to(dtype),
    )
    geometry = ConvGeometry(padding=64)
    expected = torch.conv1d(x.double(), A.double(), padding=64)
    z = lowrank_project(x, A, geometry)
    assert z.dtype == dtype and relative_error(z, expected) < torch.finfo(dtype).eps / 2
    dz = expected.to(dtype)
    wanted = torch.ops.aten.convolution_backward(
        dz.double(), x.double(), A.double(), None, [1], [64], [1], False, [0], 1, [False, True, False]
    )[1]
    dA = lowrank_grad_A(x, dz, A, geometry)
    assert dA.shape == A.shape and relative_error(dA, wanted) < torch.finfo(dtype).eps / 2


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return ((actual.double() - expected).norm() / expected.norm()).item()
