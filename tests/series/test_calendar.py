import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audiolora.series.calendar import CALENDAR, with_calendar, with_horizon
from tests.series.histories import device


@settings(max_examples=30)
@given(
    st.datetimes(pd.Timestamp("2000-01-01"), pd.Timestamp("2030-01-01")),
    st.sampled_from(["UTC", "Asia/Kolkata", "Europe/Paris"]),
)
def test_the_waves_are_the_angles_of_the_local_clock(moment, zone):
    frame = pd.DataFrame({"unique_id": "a", "ds": pd.to_datetime([moment]).astype("datetime64[ns]"), "y": 0.0})
    local = pd.Timestamp(moment, tz="UTC").tz_convert(zone).floor("s")
    row = with_calendar(frame, time_zone=zone).iloc[0]
    day = (local.hour * 3600 + local.minute * 60 + local.second) / 86400
    for name, turn in (("hour", day), ("weekday", (local.weekday() + day) / 7)):
        assert np.allclose(
            [row[f"{name}_sin"], row[f"{name}_cos"]], [np.sin(2 * np.pi * turn), np.cos(2 * np.pi * turn)]
        )


def test_the_frame_is_copied_and_its_columns_are_kept():
    frame = device("a", 3)
    assert [*with_calendar(frame).columns] == ["unique_id", "ds", "y", *CALENDAR] and [*frame.columns] == [
        "unique_id",
        "ds",
        "y",
    ]


def test_a_calendar_twice_and_an_unknown_zone_are_refused():
    with pytest.raises(ValueError, match="already has hour_sin"):
        with_calendar(with_calendar(device("a", 3)))
    with pytest.raises(ValueError, match="'Paris' is unknown"):
        with_calendar(device("a", 3), time_zone="Paris")


def test_the_horizon_is_appended_behind_the_last_measurement_of_each_device():
    hours = pd.date_range("2024-01-01", periods=4, freq="h")
    frame = pd.DataFrame({"unique_id": ["b"] * 4 + ["a"] * 4, "ds": [*hours, *hours], "y": [1.0] * 6 + [np.nan] * 2})
    found = with_horizon(frame, 2, freq="h")
    assert found["unique_id"].tolist() == ["b"] * 6 + ["a"] * 4
    ahead = [hours[-1] + h * pd.Timedelta("1h") for h in (1, 2)]
    assert found.loc[found["unique_id"] == "b", "ds"].tolist() == [*hours, *ahead]
    assert found["y"].isna().sum() == 4 and found["ds"].dtype == frame["ds"].dtype
    pd.testing.assert_frame_equal(found.dropna().reset_index(drop=True), frame.dropna().reset_index(drop=True))
