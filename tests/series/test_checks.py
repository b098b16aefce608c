"""Each kind of bad input is found by device and column, and never stops the rest of the fleet."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audiolora.series.checks import check, keep_good
from audiolora.series.frames import read
from audiolora.series.problems import PROBLEMS, SeriesError
from audiolora.series.windows import windows
from tests.series.histories import device, fleet

HOURS = np.arange(480)
SECONDS = pd.to_timedelta(np.random.default_rng(0).integers(1, 600, 480), unit="s")


def twice(name):
    """Two devices that write under one id, each in its own block."""
    return fleet(device(name, 480), device(name, np.random.default_rng(9).normal(size=300), start="2024-01-05 00:00"))


# What is done to a device, and the one finding that it must give: column, problem, count, and a part of the detail.
SPOILED = {
    "gap": (lambda d: d.drop(index=range(100, 110)), "ds", 10, "10 stamps missing in 1 gap"),
    "irregular": (lambda d: d.assign(ds=d["ds"] + SECONDS), "ds", None, "off the grid of h"),
    "duplicate": (lambda d: d.iloc[[*range(50), 49, 49, *range(50, 480)]], "ds", 2, "share a stamp with another: 2"),
    "unsorted": (lambda d: d.sample(frac=1, random_state=1), "ds", None, "behind a later one"),
    "constant": (lambda d: d.assign(y=3.0), "y", 480, "always 3"),
    "nan": (lambda d: d.assign(y=d["y"].mask(d.index == 7)), "y", 1, "1 of 480 values are missing"),
    "inf": (lambda d: d.assign(y=d["y"].mask(d.index == 7, -np.inf)), "y", 1, "1 of 480 values are infinite"),
    "too_short": (
        lambda d: d.head(71),
        "y",
        71,
        "71 whole consecutive steps at most of 71, lookback + horizon need 72",
    ),
    "unit_jump": (lambda d: d.assign(y=d["y"] * np.where(HOURS < 200, 1000, 1)), "y", 1, "a unit × 0.001"),
    "same_series": (lambda d: device("good", 480).assign(unique_id="bad"), "y", 480, "are those of 'good'"),
    "no_stamp": (lambda d: d.assign(ds=d["ds"].mask(d.index == 479)), "ds", 1, "without a stamp"),
}


@pytest.mark.parametrize(("problem", "spoiled"), SPOILED.items(), ids=SPOILED)
def test_each_problem_is_found_by_device_and_column_and_the_rest_goes_on(problem, spoiled):
    spoil, column, count, said = spoiled
    frame = fleet(device("good", 480), spoil(device("bad", 480)), device("other", 480))
    findings = check(frame, lookback=48, horizon=24)
    (one,) = findings.table.itertuples()
    assert (one.unique_id, one.column, one.problem) == ("bad", column, problem) and said in one.detail
    assert count is None or one.count == count
    assert one.remedy == PROBLEMS[problem].remedy and findings.freq == "h" and findings.inferred
    assert findings.ok == (not PROBLEMS[problem].bad) and findings.bad_ids == (
        ("bad",) if PROBLEMS[problem].bad else ()
    )
    left = keep_good(frame, findings)
    assert [*left["unique_id"].unique()] == (["good", "other"] if PROBLEMS[problem].bad else ["good", "bad", "other"])
    assert {"good", "other"} <= {*windows(left, 48, 24, freq="h").unique_id}
    assert "bad" in str(findings) and problem in str(findings)


def test_a_clean_fleet_has_no_findings():
    findings = check(fleet(device("a", 100), device("b", 90)), freq="60min", lookback=10, horizon=5)
    assert findings.ok and findings.table.empty and findings.bad_ids == ()
    findings.raise_if_bad()
    assert str(findings) == "2 devices, every h (as given): 0 bad, 0 findings"


def test_all_bad_devices_are_in_one_error():
    frame = fleet(*(device(f"d{n}", 100).assign(y=1.0) for n in range(25)), device("good", 100))
    with pytest.raises(
        SeriesError, match=r"25 of 26 devices cannot be used.*\n  d0, y: constant: always 1;(.*\n)+  … and 5 more"
    ):
        check(frame).raise_if_bad()


def test_covariates_are_checked_column_by_column():
    frame = device("a", 100, wind=np.where(np.arange(100) < 3, np.nan, 2.0), load=np.inf)
    found = {(one.column, one.problem): one.bad for one in check(frame).table.itertuples()}
    assert found == {
        ("wind", "nan"): False,
        ("wind", "constant_covariate"): False,
        ("load", "inf"): True,
        ("y", "too_short"): True,
    }


def test_the_future_of_known_covariates_is_no_missing_history():
    frame = device("a", [*range(30), *[np.nan] * 5], hour=np.arange(35.0), wind=[*range(1, 31), *[np.nan] * 5])
    assert check(frame, lookback=20, horizon=10, known=["hour"]).table.empty


def test_two_blocks_of_one_id_that_overlap_are_two_devices():
    table = check(fleet(twice("bad"), device("good", 480)), lookback=48, horizon=24).table
    assert [(one.unique_id, one.problem) for one in table.itertuples()] == [
        ("bad", "duplicate_id"),
        ("bad", "duplicate"),
    ]
    assert "2 blocks" in table["detail"][0] and "2024-01-05 00:00" in table["detail"][0]
    # Blocks one behind the other, in the wrong order, are one device.
    parts = device("a", 480)
    assert check(fleet(parts.tail(240), parts.head(240))).table["problem"].tolist() == ["unsorted"]


@settings(max_examples=30)
@given(st.permutations(range(24)))
def test_a_shuffled_history_is_unsorted_and_never_two_devices(order):
    frame = device("a", np.arange(24.0) % 7).iloc[order]
    expected = [] if [*order] == sorted(order) else ["unsorted"]
    assert check(frame).table["problem"].tolist() == expected


def test_a_file_by_time_across_devices_is_in_order():
    frame = fleet(device("a", 48), device("b", 48)).sort_values("ds", kind="stable")
    assert check(frame).table.empty and "duplicate_id" not in str(check(frame))


def test_what_the_reader_saw_is_reported_and_sorted_away_only_in_the_frame(tmp_path):
    path = tmp_path / "fleet.csv"
    good = device("good", 48).sample(frac=1, random_state=0)
    zones = device("zones", 48)
    text = fleet(good, zones).assign(ds=lambda f: f["ds"].dt.strftime("%Y-%m-%dT%H:%MZ"))
    text.loc[text.index[-1], "ds"] = "2024-01-02 23:00"
    text.astype({"y": str}).replace({"y": {str(zones["y"][0]): "off"}}).to_csv(path, index=False)
    findings = check(read(path, errors="report"), lookback=4, horizon=2)
    found = {(one.unique_id, one.problem, one.first) for one in findings.table.itertuples()}
    assert ("zones", "mixed_zones", "line 97") in found and ("zones", "not_a_number", "line 50") in found
    assert {one[:2] for one in found} == {
        ("good", "unsorted"),
        ("zones", "mixed_zones"),
        ("zones", "not_a_number"),
        ("zones", "nan"),
    }
    assert findings.bad_ids == ("zones",)
    left = keep_good(read(path, errors="report"), findings)
    assert check(left).table["problem"].tolist() == ["unsorted"]  # of those that stay, what was seen stays known


def test_stamps_that_spoil_a_wide_table_spoil_all_its_devices():
    wide = pd.DataFrame({"ds": ["2024-01-01", "soon"], "a": [1.0, 2.0], "b": [2.0, 1.0]})
    findings = check(read(wide, errors="report"))
    assert findings.bad_ids == ("a", "b") and findings.table["unique_id"].tolist()[0] == "(all devices)"
    with pytest.raises(SeriesError, match="2 of 2 devices cannot be used"):
        keep_good(read(wide, errors="report"), findings)


def test_a_device_at_another_step_is_told_its_own():
    findings = check(fleet(device("a", 480), device("b", 480), device("half", 480, freq="30min")))
    assert findings.freq == "h" and findings.bad_ids == ("half",)
    assert "most of its own differences are 30min" in findings.table["detail"][0]


def test_accepted_problems_are_shown_and_the_device_stays():
    frame = fleet(device("a", 480).assign(y=1.0), device("b", 480))
    findings = check(frame, accept=["constant"])
    assert findings.ok and findings.table["problem"].tolist() == ["constant"]
    assert keep_good(frame, findings)["unique_id"].nunique() == 2


def test_names_are_shown_not_obeyed():
    assert "[red]" in str(check(device("[red]", 30).assign(y=1.0)))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"lookback": -1}, "lookback must be"),
        ({"known": ["y"]}, "no covariates"),
        ({"accept": ["gaps"]}, "accept names no problem"),
        ({"freq": "x"}, "none that pandas knows"),
    ],
)
def test_settings_that_cannot_be(settings, said):
    with pytest.raises(ValueError, match=said):
        check(device("a", 30), **settings)
