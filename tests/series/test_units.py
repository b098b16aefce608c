"""Changes of unit are found at their row; what a device does by itself is none."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audiolora.series.units import unit_jumps

RNG = np.random.default_rng(5)
HOURS = np.arange(1440)
ORDINARY = {
    "noise": RNG.normal(size=1440),
    "a daily wave": 10 + 9 * np.sin(HOURS / 24 * 2 * np.pi),
    "panels": np.clip(np.sin(HOURS / 24 * 2 * np.pi), 0, None) ** 3,
    "panels, in winter a tenth": np.clip(np.sin(HOURS / 24 * 2 * np.pi), 0, None) * np.where(HOURS < 700, 1.0, 0.1),
    "idle at weekends": np.where(HOURS // 24 % 7 < 2, 1.0, 1000.0) * RNG.uniform(0.9, 1.1, 1440),
    "a spike": np.where(HOURS == 700, 1e6, 1.0) * RNG.uniform(0.9, 1.1, 1440),
    "growth": np.exp(HOURS / 300),
    "a counter": np.cumsum(RNG.uniform(size=1440)),
    "ten times more": np.where(HOURS < 700, 1.0, 10.0) * RNG.uniform(0.9, 1.1, 1440),
    "zeros": np.zeros(1440),
    "nothing": np.full(1440, np.nan),
    "few": np.array([1.0, 1000.0]),
}


@pytest.mark.parametrize("values", ORDINARY.values(), ids=ORDINARY)
def test_what_a_device_does_by_itself_is_no_change_of_unit(values):
    assert unit_jumps(values) == []


@settings(max_examples=25)
@given(
    st.sampled_from([1000.0, 1e-3, 1e6]),
    st.integers(150, 1290),
    st.integers(0, 99),
    st.sampled_from(["noise", "wave", "gaps"]),
)
def test_a_change_by_1000_is_found_at_its_row(ratio, row, seed, kind):
    rng = np.random.default_rng(seed)
    values = 10 + rng.normal(size=1440) + (kind == "wave") * 5 * np.sin(HOURS / 24 * 2 * np.pi)
    values[row:] *= ratio
    if kind == "gaps":
        values[rng.integers(0, 1440, 200)] = np.nan
    (jump,) = unit_jumps(values)
    assert jump.ratio == pytest.approx(ratio)
    assert jump.row == row + int(np.argmax(np.isfinite(values[row:])))
    assert jump.after / jump.before == pytest.approx(ratio, rel=0.5)


def test_there_and_back_are_two():
    values = np.where((HOURS >= 500) & (HOURS < 900), 1000.0, 1.0) * RNG.uniform(5, 10, 1440)
    assert [(jump.row, jump.ratio) for jump in unit_jumps(values)] == [(500, 1000.0), (900, pytest.approx(1e-3))]
