"""Filling against pandas, gap by gap, with the limit on whole gaps."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pandas.testing import assert_frame_equal

from audiolora.series.checks import check, fill, filled
from audiolora.series.problems import SeriesError
from tests.series.histories import device, fleet

GAPPY = device("a", np.arange(12.0)).drop(index=[3, 6, 7, 8]).reset_index(drop=True)


@pytest.mark.parametrize(("rule", "values"), [("interpolate", [3, 6, 7, 8]), ("previous", [2, 5, 5, 5])])
def test_each_rule_is_what_it_says(rule, values):
    assert fill(GAPPY, freq="h", rule=rule)["y"][[3, 6, 7, 8]].tolist() == values


def test_seasonal_takes_the_same_phase_before_and_leaves_what_has_none():
    found = fill(GAPPY, freq="h", rule="seasonal", season=4)
    # 3 has no value a season before it, so 7 has none either; 6 is 2's, 8 is 4's. Steps without a value stay gaps.
    assert found["ds"].dt.hour.tolist() == [0, 1, 2, 4, 5, 6, 8, 9, 10, 11]
    assert found.set_index(found["ds"].dt.hour)["y"][[6, 8]].tolist() == [2.0, 4.0]


def test_a_gap_longer_than_the_limit_stays_whole():
    found = fill(GAPPY, freq="h", rule="interpolate", limit=2)
    assert found["ds"].dt.hour.tolist() == [0, 1, 2, 3, 4, 5, 9, 10, 11]
    assert check(found, freq="h").table["count"].tolist() == [3]


@settings(max_examples=20)
@given(st.lists(st.integers(0, 29), max_size=12), st.sampled_from(["interpolate", "previous"]), st.integers(1, 4))
def test_filled_values_are_those_of_pandas_and_measured_ones_stay(lost, rule, limit):
    whole = device("a", 30, wind=np.arange(30.0) ** 2)
    gappy = whole.drop(index=[at for at in lost if 0 < at < 29])
    found = fill(gappy, freq="h", rule=rule, limit=limit).set_index("ds")
    every = gappy.set_index("ds").reindex(whole["ds"])
    full = every[["y", "wind"]].interpolate("linear") if rule == "interpolate" else every[["y", "wind"]].ffill()
    runs = every["y"].isna().groupby(every["y"].notna().cumsum()).transform("sum")
    kept = every["y"].notna() | (runs <= limit)
    assert found.index.tolist() == every.index[kept].tolist()
    np.testing.assert_allclose(found[["y", "wind"]], full[kept])


def test_filled_counts_by_device_and_column_where():
    gappy = fleet(GAPPY.assign(wind=1.0), device("b", 5, wind=[1.0, np.nan, 1.0, 1.0, 1.0]))
    found = filled(gappy, fill(gappy, freq="h", rule="previous"))
    assert found[["unique_id", "column", "count"]].to_numpy().tolist() == [
        ["a", "y", 4],
        ["a", "wind", 4],
        ["b", "wind", 1],
    ]
    assert found["first"].dt.hour.tolist() == [3, 3, 1] and found["last"].dt.hour.tolist() == [8, 8, 1]


def test_a_whole_frame_comes_back_the_same():
    frame = fleet(device("a", 10, wind=2.0), device("b", 4, wind=1.0))
    assert_frame_equal(fill(frame, freq="h", rule="previous"), frame)
    assert filled(frame, frame).empty


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"rule": "zero"}, "rule must be one of interpolate, previous, seasonal, got 'zero'"),
        ({"rule": "previous", "limit": 0}, "limit must be at least 1 step"),
        ({"rule": "seasonal"}, "season= goes with"),
        ({"rule": "previous", "season": 24}, "season= goes with"),
    ],
)
def test_rules_that_are_none(settings, said):
    with pytest.raises(ValueError, match=said):
        fill(GAPPY, freq="h", **settings)


def test_a_stray_stamp_of_1970_is_refused_and_a_double_one_too():
    stray = fleet(GAPPY, GAPPY.head(1).assign(ds=pd.Timestamp("1970-01-01")))
    with pytest.raises(SeriesError, match=r"a: 9 rows over \d+ steps, 1970"):
        fill(stray, freq="h", rule="previous")
    with pytest.raises(SeriesError, match="a: 1 stamps twice"):
        fill(fleet(GAPPY, GAPPY.head(1)), freq="h", rule="previous")
