"""The cost against a count of multiply-adds, term by term, and the choice that follows from it."""

from __future__ import annotations

import pytest

from audiolora.conv.geometry import ConvGeometry
from audiolora.conv.plan import Path, gradient_path, low_rank_cost, training_overhead

DEPTHWISE = ConvGeometry(padding=15, groups=256)


@pytest.mark.parametrize(
    "out, per_group, k, r, groups, stride",
    [(384, 80, 3, 32, 1, 1), (384, 384, 3, 8, 1, 2), (768, 48, 128, 8, 16, 1), (64, 1, 31, 4, 64, 1)],
)
def test_the_cost_is_the_count_of_multiply_adds_an_output(
    out: int, per_group: int, k: int, r: int, groups: int, stride: int
) -> None:
    in_channels, inputs_an_output = per_group * groups, stride
    z = grad_A = inputs_an_output * in_channels * k * r
    grad_B = grad_z = out * r
    shape, geometry = (out, per_group, k), ConvGeometry(stride=stride, groups=groups)
    assert low_rank_cost(shape, r, geometry) == z + grad_A + grad_B + grad_z


def test_the_cost_of_a_transposed_one_is_counted_an_input() -> None:
    in_channels, out_channels, k, stride, r = 512, 256, 16, 8, 4
    z = grad_A = in_channels * k * r
    grad_B = grad_z = stride * out_channels * r
    geometry = ConvGeometry(stride=stride, groups=2, transposed=True)
    assert low_rank_cost((in_channels, out_channels // 2, k), r, geometry) == z + grad_A + grad_B + grad_z


def test_overhead_is_a_share_of_forward_and_input_gradient() -> None:
    shape, plain = (384, 80, 3), ConvGeometry()
    frozen = 2 * 384 * 80 * 3
    expected = low_rank_cost(shape, 4, plain) / frozen
    assert training_overhead(shape, 4, plain, Path.LOW_RANK) == pytest.approx(expected)
    assert training_overhead(shape, 4, plain, Path.DENSE) == 0.5, "the weight gradient, half of what is there"


def test_a_linear_is_a_kernel_of_one() -> None:
    assert low_rank_cost((96, 64), 2, ConvGeometry()) == low_rank_cost((96, 64, 1), 2, ConvGeometry())


@pytest.mark.parametrize(
    "shape, geometry, path",
    [
        ((512, 512, 3), ConvGeometry(stride=2), Path.LOW_RANK),
        ((64, 64, 3), ConvGeometry(padding=2), Path.DENSE),
        ((64, 64, 7), ConvGeometry(padding=27, dilation=9), Path.LOW_RANK),
        ((512, 256, 16), ConvGeometry(stride=8, padding=4, transposed=True), Path.LOW_RANK),
        ((256, 1, 31), DEPTHWISE, Path.DENSE),
        ((512, 7, 3), ConvGeometry(padding=1), Path.DENSE),
        ((32, 32, 39), ConvGeometry(padding=19), Path.DENSE),
    ],
    ids=["wav2vec2", "TCN", "DAC", "HiFi-GAN", "Conformer", "Informer's embedding", "InceptionTime"],
)
def test_the_dense_gradient_is_taken_where_r_is_not_small_against_the_channels(
    shape: tuple[int, ...], geometry: ConvGeometry, path: Path
) -> None:
    assert gradient_path(shape, 8, geometry) is path
