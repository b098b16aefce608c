"""Scaling is inverted exactly up to rounding, sees no future, and is what scikit-learn computes."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.preprocessing import RobustScaler, StandardScaler

from audiolora.series.calendar import CALENDAR, with_calendar
from audiolora.series.scaling import Robust, Standard, WindowScaler, scaler_from_dict
from audiolora.series.windows import windows
from tests.series.histories import device, fleet

SCALERS = [WindowScaler(), Standard(), Robust()]
values = st.one_of(st.just(0.0), st.floats(1e-6, 1e6), st.floats(-1e6, -1e-6))


def cut(y, **covariates):
    """Windows of two devices, the second one a thousand times larger."""
    frame = fleet(device("a", y, **covariates), device("b", 1000 * np.asarray(y), **covariates))
    return frame, windows(frame, 6, 3, freq="h")


@settings(max_examples=25)
@given(arrays(np.float64, 16, elements=values), st.sampled_from(SCALERS))
def test_scaling_is_invertible_for_inputs_targets_and_quantiles(y, scaler):
    frame, found = cut(y)
    seen = scaler.fit(frame).statistics(found)
    largest = np.abs(y).max() * 1000 + 1
    assert np.isfinite(seen.transform(found.x)).all() and seen.transform(found.x).dtype == np.float32
    np.testing.assert_allclose(seen.inverse(seen.transform(found.x)), found.x, rtol=1e-5, atol=1e-6 * largest)
    exact = found.y.astype(np.float64)
    np.testing.assert_allclose(
        seen.inverse_target(seen.transform_target(exact)), exact, rtol=1e-9, atol=1e-12 * largest
    )
    quantiles = np.sort(np.random.default_rng(0).normal(size=(len(found), 3, 5)), axis=2)
    back = seen.inverse_target(quantiles)
    assert back.shape == (len(found), 3, 5) and (np.diff(back, axis=2) >= 0).all()
    for q in range(5):
        np.testing.assert_array_equal(back[:, :, q], seen.inverse_target(quantiles[:, :, q]))


@given(arrays(np.float64, 16, elements=st.floats(-1e3, 1e3)))
@settings(max_examples=25)
def test_the_window_scaler_is_zero_mean_unit_deviation_of_the_lookback_alone(y):
    _, found = cut(y)
    scaled = WindowScaler().statistics(found).transform(found.x.astype(np.float64))
    x = found.x.astype(np.float64)
    varies = x.std(axis=2) > 1e-3 * np.sqrt((x**2).mean(axis=2))
    np.testing.assert_allclose(scaled.mean(axis=2), 0, atol=1e-6)
    np.testing.assert_allclose(scaled.std(axis=2)[varies], 1, rtol=1e-6)
    assert (scaled.std(axis=2) <= 1 + 1e-6).all()
    targets = WindowScaler().statistics(found).transform_target(np.zeros_like(found.y))
    found.y[:] = 1e9  # what comes later is never looked at
    np.testing.assert_array_equal(WindowScaler().statistics(found).transform_target(np.zeros_like(found.y)), targets)


def test_a_lookback_of_zeros_and_one_that_hardly_varies_stay_finite_and_small():
    _, found = cut([0.0] * 6 + [3.0] * 10)
    seen = WindowScaler().statistics(found)
    assert seen.scale[0, 0] == 1.0 and seen.transform_target(found.y)[0].tolist() == [3.0, 3.0, 3.0]
    _, still = cut([500.0, 500.0, 500.0, 500.0, 500.0, 500.001, 501.0, 500.0, 500.0])
    assert WindowScaler(floor=1e-2).statistics(still).scale[0, 0] == pytest.approx(5.0, rel=1e-5)


@pytest.mark.parametrize(
    ("ours", "theirs"), [(Standard(), StandardScaler()), (Robust(), RobustScaler(unit_variance=True))]
)
def test_fitted_scalers_are_scikit_learns_by_device(ours, theirs):
    frame, _ = cut(np.random.default_rng(1).gamma(2, size=50), wind=np.random.default_rng(2).normal(size=50))
    found = windows(frame, 6, 3, freq="h")
    scaled = ours.fit(frame).statistics(found).transform(found.x.astype(np.float64))
    for name, rows in frame.groupby("unique_id"):
        expected = theirs.fit(rows[["y", "wind"]].to_numpy())
        mine = found.unique_id == name
        flat = found.x[mine].astype(np.float64).transpose(0, 2, 1).reshape(-1, 2)
        np.testing.assert_allclose(
            scaled[mine].transpose(0, 2, 1).reshape(-1, 2), expected.transform(flat), rtol=1e-9, atol=1e-9
        )


@pytest.mark.parametrize("scaler", [Standard(), Robust()])
def test_fitting_looks_at_training_data_alone(scaler):
    frame, _ = cut(np.arange(20.0))
    until = frame["ds"].min() + pd.Timedelta("9h")
    spoiled = frame.assign(y=frame["y"].where(frame["ds"] <= until, 1e6))
    assert scaler.fit(frame, until=until) == scaler.fit(spoiled, until=until) != scaler.fit(spoiled)


def test_devices_fitted_later_are_added():
    frame, _ = cut(np.arange(20.0))
    a, b = frame[frame["unique_id"] == "a"], frame[frame["unique_id"] == "b"]
    assert Standard().fit(a).fit(b) == Standard().fit(frame)


@pytest.mark.parametrize("scaler", [WindowScaler(floor=0.01, unscaled=("wind",)), Standard(), Robust(floor=0.1)])
def test_scalers_survive_json(scaler):
    frame, found = cut(np.random.default_rng(0).normal(size=20), wind=1.0)
    fitted = scaler.fit(frame)
    again = scaler_from_dict(json.loads(json.dumps(fitted.to_dict(), allow_nan=False)))
    assert again == fitted and type(again) is type(fitted)
    found = windows(frame, 6, 3, freq="h")
    np.testing.assert_array_equal(again.statistics(found).scale, fitted.statistics(found).scale)


@pytest.mark.parametrize("scaler", SCALERS)
def test_the_calendars_waves_are_left_as_they_are(scaler):
    frame = with_calendar(fleet(device("a", 40), device("b", 40)))
    found = windows(frame, 6, 3, freq="h", known=CALENDAR)
    scaled = scaler.fit(frame).statistics(found).transform(found.x)
    np.testing.assert_array_equal(scaled[:, 1:], found.x[:, 1:])
    assert np.abs(scaled[:, 0] - found.x[:, 0]).max() > 1


def test_what_cannot_be_scaled_is_named():
    frame, found = cut(np.arange(20.0))
    with pytest.raises(ValueError, match=r"^b: Standard was not fitted on y of this device"):
        Standard().fit(frame[frame["unique_id"] == "a"]).statistics(found)
    with pytest.raises(ValueError, match=r"b, y: no finite mean and spread"):
        Robust().fit(frame.assign(y=frame["y"].where(frame["unique_id"] == "a", np.inf)))
    with pytest.raises(ValueError, match=r"a: no rows up to 2020"):
        Standard().fit(frame, until="2020-01-01")
    for floor in (0, -1, np.nan, "x"):
        with pytest.raises(ValueError, match="floor must be a positive number"):
            WindowScaler(floor=floor)
    with pytest.raises(ValueError, match="scaler kind must be one of window, standard, robust, got 'log'"):
        scaler_from_dict({"kind": "log"})
    with pytest.raises(ValueError, match="a window scaler cannot be made of"):
        scaler_from_dict({"kind": "window", "flor": 1})
