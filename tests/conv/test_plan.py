"""The cost against a count of multiply-adds, term by term."""

from __future__ import annotations

import pytest

from audiolora.conv.plan import training_overhead


@pytest.mark.parametrize(
    "out, per_group, k, r, groups",
    [(384, 80, 3, 32, 1), (768, 48, 128, 8, 16), (64, 1, 31, 4, 64), (16, 8, 1, 2, 1)],
)
def test_overhead_is_the_count_of_multiply_adds_a_position(
    out: int, per_group: int, k: int, r: int, groups: int
) -> None:
    frozen = 2 * out * per_group * k  # forward, input gradient
    z = grad_A = groups * r * per_group * k
    grad_B = grad_z = out * r
    assert training_overhead((out, per_group, k), r, groups) == pytest.approx((z + grad_A + grad_B + grad_z) / frozen)


def test_a_linear_is_a_kernel_of_one() -> None:
    assert training_overhead((96, 64), 8) == training_overhead((96, 64, 1), 8)
