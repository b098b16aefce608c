"""The formulas against float64 written out, and NF4's levels against the paper's and their derivation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from audiolora.conv.factors import LowRank, adapted_weight, as_kernel
from audiolora.conv.packed import PackedWeight
from audiolora.conv.quantized import (
    INT4,
    NF4,
    dequantize_4bit,
    dequantize_int8,
    pack_4bit,
    quantize_4bit,
    quantize_int8,
    unpack_4bit,
)

shapes = st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.integers(1, 9), st.booleans())


def drawn(groups: int, per_out: int, per_in: int, k: int, transposed: bool) -> tuple[torch.Tensor, int | None]:
    """A weight of some module, with channels of very different size, one of them zero."""
    g = torch.Generator().manual_seed(groups + 7 * per_out + 31 * per_in + 101 * k)
    shape = (groups * per_in, per_out, k) if transposed else (groups * per_out, per_in, k)
    weight = torch.randn(shape, generator=g, dtype=torch.float64)
    weight *= 10 ** torch.randint(-3, 3, (1, shape[1], 1) if transposed else (shape[0], 1, 1), generator=g).double()
    weight[:, 0] *= 0 if per_in > 1 and not transposed else 1
    return weight, groups if transposed else None


@given(shapes)
def test_int8_is_the_nearest_multiple_of_the_channel_s_largest_over_127(shape: tuple[int, int, int, int, bool]) -> None:
    weight, groups = drawn(*shape)
    q, scale = quantize_int8(weight, groups)
    assert q.dtype == torch.int8 and q.shape == weight.shape and scale.dtype == torch.float32
    kernel, codes = (as_kernel(tensor, groups).flatten(1).numpy() for tensor in (weight, q))
    largest = np.abs(kernel).max(1)
    np.testing.assert_allclose(scale.numpy(), np.maximum(largest / 127, np.finfo(np.float32).tiny), rtol=1e-7)
    exact = kernel / scale.double().numpy()[:, None]
    assert np.abs(codes - exact).max() <= 0.5 + 1e-5
    back = as_kernel(dequantize_int8(q, scale, groups, torch.float64), groups).flatten(1).numpy()
    np.testing.assert_array_equal(back, codes * scale.double().numpy()[:, None])
    assert (np.abs(back - kernel).max(1) <= largest / 254 * (1 + 1e-5) + 1e-38).all()


def test_int8_of_zeros_and_of_the_smallest_numbers_is_finite() -> None:
    weight = torch.tensor([[0.0, 0.0], [1e-42, -1e-44], [3e38, -3e38]])
    q, scale = quantize_int8(weight)
    back = dequantize_int8(q, scale)
    assert back.isfinite().all() and not back[0].any()
    torch.testing.assert_close(back[2], weight[2])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_int8_of_another_dtype_has_float32_scales_and_is_rounded_once(dtype: torch.dtype) -> None:
    weight = torch.randn(6, 4, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    q, scale = quantize_int8(weight)
    assert scale.dtype == torch.float32
    assert torch.equal(dequantize_int8(q, scale, dtype=dtype), (q * scale[:, None, None]).to(dtype))


def test_nf4_s_levels_are_the_paper_s() -> None:
    """Appendix E of arXiv 2305.14314, and their derivation: quantiles of both halves, from 1 - (1/32 + 1/30)/2 on."""
    published = [
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
        -0.18477343022833435, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
        0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ]  # fmt: skip
    np.testing.assert_allclose(NF4, published, atol=1e-12)
    offset = 1 - (1 / 32 + 1 / 30) / 2
    positive = norm.ppf(np.linspace(offset, 0.5, 9)[:-1])
    negative = -norm.ppf(np.linspace(offset, 0.5, 8)[:-1])
    levels = np.sort(np.concatenate([positive, [0], negative])) / positive.max()
    np.testing.assert_allclose(NF4, levels, atol=2e-7)
    assert max(np.diff(NF4)) / 2 < 0.152
    np.testing.assert_allclose(np.array(INT4) * 7, np.arange(-8, 8), atol=1e-12)


@given(shapes, st.sampled_from([("nf4", NF4), ("int4", INT4)]), st.sampled_from([2, 5, 8, 64]))
def test_4_bits_are_the_nearest_level_of_each_group(
    shape: tuple[int, int, int, int, bool], of: tuple[str, tuple[float, ...]], size: int
) -> None:
    (kind, levels), (weight, groups) = of, drawn(*shape)
    packed, scale = quantize_4bit(weight, kind, size, groups)
    back = dequantize_4bit(packed, scale, weight.shape, kind, size, groups, torch.float64)
    assert back.shape == weight.shape
    kernel, got = (as_kernel(tensor, groups).flatten(1).numpy() for tensor in (weight, back))
    channels, columns = kernel.shape
    assert packed.shape == (channels, -(-columns // 2)) and packed.dtype == torch.uint8
    size = min(size, columns)
    assert scale.shape == (channels, -(-columns // size))
    for o in range(channels):
        for start in range(0, columns, size):
            part, found = kernel[o, start : start + size], got[o, start : start + size]
            largest = max(np.abs(part).max(), np.finfo(np.float32).tiny)
            nearest = np.abs(part[:, None] - largest * np.array(levels)).min(1)
            assert (np.abs(found - part) <= nearest + 1e-6 * largest).all()
            assert (np.abs(found - part) <= largest * ({"nf4": 0.152, "int4": 1 / 14}[kind] + 1e-6)).all()


@given(st.lists(st.lists(st.integers(0, 15), min_size=5, max_size=5), min_size=1, max_size=4))
def test_what_is_packed_comes_out(codes: list[list[int]]) -> None:
    tensor = torch.tensor(codes, dtype=torch.uint8)
    assert pack_4bit(tensor).shape == (len(codes), 3)
    assert torch.equal(unpack_4bit(pack_4bit(tensor))[:, :5], tensor)


@pytest.mark.parametrize("magnitude", [None, torch.arange(1.0, 5.0)])
@pytest.mark.parametrize("groups", [None, 2])
def test_a_packed_weight_is_added_to_in_the_memory_it_was_unpacked_into(
    groups: int | None, magnitude: torch.Tensor | None
) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn((6, 2, 5) if groups else (4, 3, 5), generator=generator)
    term = LowRank(torch.randn(2, 3, 5, generator=generator), torch.randn(4, 2, generator=generator), 0.5, groups)
    made: list[torch.Tensor] = []

    def unpack() -> torch.Tensor:
        made.append(weight.clone())
        return made[-1]

    packed = PackedWeight(weight.shape, weight.dtype, weight.device, unpack)
    got = adapted_weight(packed, term, magnitude)
    torch.testing.assert_close(got, adapted_weight(weight, term, magnitude))
    assert len(made) == 1
    if magnitude is None:
        assert got.data_ptr() == made[0].data_ptr()
