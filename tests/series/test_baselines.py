"""Seasonal naive by hand; ridge against its normal equations."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from audiolora.series.baselines import ridge, seasonal_naive
from tests.series.tiny_fleet import HORIZON, LOOKBACK, fleet


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    return fleet(2, 24 * 12)


@pytest.mark.parametrize(("horizon", "seasonality"), [(6, 24), (24, 24), (30, 24), (5, 2), (3, 1)])
def test_seasonal_naive_repeats_the_last_season(frame, horizon, seasonality):
    cutoffs = [frame["ds"][100], frame["ds"][200]]
    found = seasonal_naive(frame, cutoffs, horizon, seasonality, freq="h")
    assert len(found) == 2 * 2 * horizon
    for (unique_id, cutoff), rows in found.groupby(["unique_id", "cutoff"]):
        y = frame[frame["unique_id"] == unique_id].set_index("ds")["y"]
        season = y[:cutoff].to_numpy()[-seasonality:]
        np.testing.assert_array_equal(rows["seasonal_naive"], np.resize(season, horizon))
        np.testing.assert_array_equal(rows["y"], y[cutoff:].to_numpy()[1 : horizon + 1])


def test_seasonal_naive_behind_the_last_stamp_has_no_actuals(frame):
    found = seasonal_naive(frame, [frame["ds"].max()], HORIZON, 24, freq="h")
    assert found["y"].isna().all() and found["seasonal_naive"].notna().all()


def test_seasonal_naive_names_the_device_that_has_no_season(frame):
    short = frame[(frame["unique_id"] == "pump0") | (frame["ds"] > frame["ds"][95])]
    with pytest.raises(ValueError, match=r"pump1, cutoff 2024-01-05 04:00:00: no value at 2024-01-04 05:00:00"):
        seasonal_naive(short, [frame["ds"][100]], HORIZON, 24, freq="h")


def by_hand(y: np.ndarray, end: int, alpha: float) -> np.ndarray:
    """Ridge on standardised inputs with a free intercept, by the normal equations; y up to row ``end`` inclusive."""
    starts = range(end + 1 - LOOKBACK - HORIZON + 1)
    x = np.stack([y[i : i + LOOKBACK] for i in starts])
    target = np.stack([y[i + LOOKBACK : i + LOOKBACK + HORIZON] for i in starts])
    mean, scale, level = x.mean(0), x.std(0), target.mean(0)
    z = (x - mean) / scale
    weights = np.linalg.solve(z.T @ z + alpha * np.eye(LOOKBACK), z.T @ (target - level))
    return (y[end + 1 - LOOKBACK : end + 1] - mean) / scale @ weights + level


@pytest.mark.parametrize("refit", [True, False])
def test_ridge_is_that_of_the_normal_equations(frame, refit):
    ends = [200, 230]
    cutoffs = [frame["ds"][end] for end in ends]
    until = None if refit else cutoffs[0]
    found = ridge(frame, cutoffs, HORIZON, LOOKBACK, freq="h", alphas=[3.0], until=until)
    for unique_id, rows in found.groupby("unique_id"):
        y = frame.loc[frame["unique_id"] == unique_id, "y"].to_numpy().astype(np.float32).astype(float)
        wanted = by_hand(y, ends[0], 3.0)
        np.testing.assert_allclose(rows["ridge"].to_numpy()[:HORIZON], wanted, rtol=1e-5)
        if refit:
            np.testing.assert_allclose(rows["ridge"].to_numpy()[HORIZON:], by_hand(y, ends[1], 3.0), rtol=1e-5)


def test_ridge_learns_nothing_from_behind_the_cutoff_and_nothing_before_after(frame):
    cutoff, after = frame["ds"][220], frame["ds"][60]
    found = ridge(frame, [cutoff], HORIZON, LOOKBACK, freq="h", after=after)
    changed = frame.assign(y=frame["y"].where(frame["ds"] <= cutoff, 1e6))
    again = ridge(changed, [cutoff], HORIZON, LOOKBACK, freq="h", after=after)
    np.testing.assert_array_equal(found["ridge"], again["ridge"])
    early = frame.assign(y=frame["y"].where(frame["ds"] > after - pd.Timedelta(hours=LOOKBACK), 1e6))
    np.testing.assert_array_equal(
        ridge(early, [cutoff], HORIZON, LOOKBACK, freq="h", after=after)["ridge"], found["ridge"]
    )


def test_ridge_reads_the_known_future(frame):
    """y follows a covariate exactly: only its future tells the forecast."""
    rng = np.random.default_rng(0)
    driver = rng.standard_normal(len(frame))
    driven = frame.assign(y=2 * driver + 5, load=driver)
    found = ridge(driven, [frame["ds"][220]], HORIZON, LOOKBACK, freq="h", known=["load"], alphas=[1e-4])
    np.testing.assert_allclose(found["ridge"], found["y"], atol=1e-2)
    blind = ridge(driven, [frame["ds"][220]], HORIZON, LOOKBACK, freq="h")
    assert (blind["ridge"] - blind["y"]).abs().mean() > 0.5


def test_ridge_says_who_has_too_little(frame):
    with pytest.raises(ValueError, match="pump0: ridge has 8 whole windows to learn from and needs 28"):
        ridge(frame, [frame["ds"][60]], HORIZON, LOOKBACK, freq="h")
    with pytest.raises(ValueError, match="pump0: the cutoff .* lies before until"):
        ridge(frame, [frame["ds"][200]], HORIZON, LOOKBACK, freq="h", until=frame["ds"][201])


def test_a_gap_in_the_lookback_leaves_the_device_out(frame):
    gap = frame[(frame["unique_id"] == "pump0") | (frame["ds"] != frame["ds"][210])]
    found = ridge(gap, [frame["ds"][220]], HORIZON, LOOKBACK, freq="h")
    assert set(found["unique_id"]) == {"pump0"}
