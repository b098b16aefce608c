"""Stamps into UTC, against the standard library's zoneinfo."""

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audiolora.series.problems import SeriesError
from audiolora.series.stamps import read_stamps

ZONES = [ZoneInfo(name) for name in ("Europe/Paris", "Asia/Kolkata", "America/St_Johns", "UTC")]
moments = st.datetimes(datetime(1990, 1, 1), datetime(2040, 1, 1), timezones=st.sampled_from(ZONES))


@settings(max_examples=30)
@given(st.lists(moments, min_size=1, max_size=20), st.sampled_from(["T", " "]))
def test_stamps_with_offsets_are_the_moments_they_state(aware, separator):
    read = read_stamps(pd.Series([moment.isoformat(sep=separator) for moment in aware]), None)
    expected = [moment.astimezone(UTC).replace(tzinfo=None) for moment in aware]
    assert read.ds.dt.to_pydatetime().tolist() == expected
    assert read.ds.dtype == "datetime64[ns]" and not read.unreadable.any() and not read.ambiguous.any()


@settings(max_examples=30)
@given(st.lists(moments, min_size=1, max_size=20))
def test_datetime_objects_of_several_zones_are_the_moments_they_are(aware):
    read = read_stamps(pd.Series(aware, dtype=object), None)
    assert read.ds.dt.to_pydatetime().tolist() == [moment.astimezone(UTC).replace(tzinfo=None) for moment in aware]


def test_stamps_without_an_offset_are_utc_or_of_the_zone_named():
    column = pd.Series(["2024-07-01 12:00", "2024-01-05"])
    assert read_stamps(column, None).ds.tolist() == [pd.Timestamp("2024-07-01 12:00"), pd.Timestamp("2024-01-05")]
    paris = [pd.Timestamp("2024-07-01 10:00"), pd.Timestamp("2024-01-04 23:00")]
    assert read_stamps(column, "Europe/Paris").ds.tolist() == paris
    assert read_stamps(pd.to_datetime(column, format="ISO8601"), "Europe/Paris").ds.tolist() == paris


def test_a_column_with_a_zone_becomes_utc_whatever_is_named():
    column = pd.Series(pd.date_range("2024-07-01 12:00", periods=2, freq="h", tz="Asia/Kolkata"))
    assert read_stamps(column, "Europe/Paris").ds[0] == pd.Timestamp("2024-07-01 06:30")


def test_offsets_beside_none_are_not_guessed_at_unless_the_zone_is_named():
    column = pd.Series(["2024-07-01T12:00Z", "2024-07-01 12:00", None])
    read = read_stamps(column, None)
    assert read.ds.isna().tolist() == [False, True, True]
    assert read.ambiguous.tolist() == [False, True, False] and read.unreadable.tolist() == [False, False, True]
    named = read_stamps(column, "Europe/Paris")
    assert named.ds[1] == pd.Timestamp("2024-07-01 10:00") and not named.ambiguous.any()


def test_hours_that_the_clocks_skip_or_repeat_are_not_guessed_at():
    read = read_stamps(pd.Series(["2024-03-31 02:30", "2024-10-27 02:30", "2024-10-27 03:30"]), "Europe/Paris")
    assert read.unreadable.tolist() == [True, True, False]


@pytest.mark.parametrize("text", ["01/02/2024", "yesterday", "2024-13-01", ""])
def test_what_is_not_iso_8601_is_unreadable(text):
    assert read_stamps(pd.Series([text, "2024-01-01"]), None).unreadable.tolist() == [True, False]


def test_numbers_and_unknown_zones_are_refused_with_the_remedy():
    with pytest.raises(SeriesError, match=r"'t' holds numbers such as 1704067200.*unit='s'"):
        read_stamps(pd.Series([1704067200], name="t"), None)
    with pytest.raises(SeriesError, match=r"'Paris' is unknown.*Europe/Paris"):
        read_stamps(pd.Series(["2024-01-01"]), "Paris")
