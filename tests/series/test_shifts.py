"""Shifts against values by hand, and deployments: who learns, who is new, and when."""

import numpy as np
import pandas as pd
import pytest
from scipy.signal import lfilter

from audiolora.series.deployment import deploy, folder_name
from audiolora.series.shifts import SHIFTS, SLOWNESS, apply_shift
from tests.series.tiny_fleet import fleet

FRAME = fleet(devices=4, steps=24 * 10)


def shifted(name, frame=FRAME, **settings):
    return apply_shift(name, frame, freq="h", seasonality=24, **settings)


@pytest.mark.parametrize("name", [name for name in SHIFTS if name != "sensor"])
def test_a_shift_leaves_the_frame_and_keeps_every_device(name):
    before = FRAME.copy()
    found = shifted(name)
    pd.testing.assert_frame_equal(FRAME, before)
    for view in (found.learned, found.deployed):
        assert view["unique_id"].unique().tolist() == FRAME["unique_id"].unique().tolist()
    assert found.simulated == (name in ("recalibrate", "rate", "resample"))


def test_another_sensor_is_another_column():
    found = shifted("sensor", FRAME.assign(load=FRAME["y"] + 1), base_column="load")
    np.testing.assert_allclose(found.learned["y"], found.deployed["y"] + 1)
    assert list(found.learned) == list(found.deployed) == ["unique_id", "ds", "y"]
    with pytest.raises(ValueError, match="needs a second sensor, the column 'load_kwh'; the frame has none"):
        shifted("sensor")


def test_recalibrated_sensors_are_a_first_order_filter():
    y = FRAME.loc[FRAME["unique_id"] == "pump1", "y"].to_numpy()
    pole = np.exp(-1 / SLOWNESS)
    slow, _ = lfilter([1 - pole], [1, -pole], y, zi=[pole * y[0]])
    found = shifted("recalibrate").deployed
    np.testing.assert_allclose(found.loc[found["unique_id"] == "pump1", "y"], 10 - 2 * slow)


def test_a_rate_is_the_difference_and_none_spans_a_gap():
    gappy = FRAME.drop(FRAME.index[5]).reset_index(drop=True)
    found = shifted("rate", gappy).deployed
    own = found[found["unique_id"] == "pump0"].set_index("ds")["y"]
    whole = FRAME[FRAME["unique_id"] == "pump0"].set_index("ds")["y"]
    assert len(own) == len(whole) - 2 and np.isnan(own.iloc[4])
    np.testing.assert_allclose(own.drop(own.index[4]), whole.diff().reindex(own.index).drop(own.index[4]))


def test_the_base_learned_means_over_two_steps():
    found = shifted("resample", FRAME.drop(FRAME.index[3]))
    assert (found.learned_freq, found.deployed_freq, found.seasonality) == ("2h", "h", 24)
    own = found.learned[found.learned["unique_id"] == "pump0"].set_index("ds")["y"]
    whole = FRAME[FRAME["unique_id"] == "pump0"].set_index("ds")["y"].resample("2h").mean()
    np.testing.assert_allclose(own, whole.drop(whole.index[1]))  # one of its two steps is missing


def test_unknown_shift():
    with pytest.raises(ValueError, match="shift must be one of none, sensor, .*, got 'drift'"):
        shifted("drift")


def test_a_deployment_has_no_device_twice_and_its_times_in_order():
    plan = deploy(FRAME, unseen=2, history_days=4, test_days=2, seed=3, away=pd.Timedelta("1D"))
    assert sorted(plan.learned + plan.unseen) == sorted(FRAME["unique_id"].unique())
    last = FRAME["ds"].max()
    assert plan.scored_until == last and plan.adapted_at == last - pd.Timedelta("2D")
    assert plan.base_until == plan.adapted_at - pd.Timedelta("1D")
    assert plan.history_after == plan.adapted_at - pd.Timedelta("4D")
    assert {deploy(FRAME, unseen=2, history_days=4, test_days=2, seed=s).unseen for s in range(9)} != {plan.unseen}
    assert plan == deploy(FRAME, unseen=2, history_days=4, test_days=2, seed=3, away=pd.Timedelta("1D"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"unseen": 4}, "1 to 3 of 4, got 4"),
        ({"unseen": 0}, "1 to 3 of 4, got 0"),
        ({"history_days": 9}, "leave nothing; take fewer days"),
        ({"test_days": 0}, "test_days must be positive, got 0"),
        ({"away": pd.Timedelta("60D")}, "60 between base and devices"),
    ],
    ids=str,
)
def test_impossible_deployments(changes, message):
    with pytest.raises(ValueError, match=message):
        deploy(FRAME, **{"unseen": 2, "history_days": 4, "test_days": 2, **changes})


def test_names_of_folders_are_one_to_one_and_stay_below_their_parent():
    ids = ["a/b", "a%2Fb", "..", ".", "a b", "ä", "con:1", "a.b"]
    names = [folder_name(name) for name in ids]
    assert len(set(names)) == len(ids) and not {"..", "."} & set(names) and not any("/" in name for name in names)
