"""Grids of stamps against pandas' own date ranges."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from audiolora.series.steps import Grid, freq_name, infer_freq, parse_freq

FREQS = ("15min", "h", "D", "7D", "W-WED", "B", "MS", "QS", "37s")


@given(freq=st.sampled_from(FREQS), count=st.integers(2, 60), data=st.data())
def test_steps_and_stamps_are_those_of_a_date_range(freq, count, data):
    every = pd.date_range("2023-11-01 00:00", periods=count, freq=freq).to_numpy("datetime64[ns]")
    kept = np.array(data.draw(st.lists(st.integers(0, count - 1), min_size=1, unique=True)))
    grid = Grid.of(every[kept], freq)
    steps, on_grid = grid.steps(every[kept])
    assert on_grid.all()
    assert np.array_equal(steps - steps.min(), kept - kept.min())
    assert np.array_equal(grid.stamps(steps), every[kept])
    assert np.array_equal(
        grid.stamps(steps.max() + np.arange(3)), pd.date_range(every[kept].max(), periods=3, freq=freq)
    )
    assert grid.last_until(every[kept].max()) == steps.max()
    assert grid.last_until(every[kept].max() - np.timedelta64(1, "ns")) == steps.max() - 1


def test_the_grid_is_that_of_most_stamps_even_if_the_first_is_off():
    stamps = pd.to_datetime(["2024-01-01 00:07", "2024-01-01 01:00", "2024-01-01 02:00"]).to_numpy("datetime64[ns]")
    grid = Grid.of(stamps, "h")
    assert grid.steps(stamps)[1].tolist() == [False, True, True]
    assert grid.start <= stamps.min()


@pytest.mark.parametrize("freq", ["15min", "h", "D", "10s", "7D", "28D", "31D", "MS", "ME", "QS-FEB", "YE"])
def test_the_inferred_frequency_is_the_one_of_most_differences(freq):
    stamps = pd.date_range("2024", periods=30, freq=freq).to_numpy("datetime64[ns]")
    assert infer_freq([stamps[:2], np.delete(stamps, [3, 4, 20])]) == freq
    assert infer_freq([stamps[:1], stamps[:0]]) is None


@pytest.mark.parametrize(("freq", "name"), [("60min", "h"), ("24h", "D"), (pd.Timedelta("90s"), "90s"), ("MS", "MS")])
def test_names_are_the_shortest(freq, name):
    assert freq_name(freq) == name


@pytest.mark.parametrize("freq", ["every hour", "-1h", 7, None])
def test_what_is_no_frequency_is_refused_with_an_example(freq):
    with pytest.raises(ValueError, match=r"try 'h', '15min', 'D' or 'MS'"):
        parse_freq(freq)
