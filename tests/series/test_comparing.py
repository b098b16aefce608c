"""The forecaster beside its baselines: the same rows, and each column what it says."""

from __future__ import annotations

import copy

import pandas as pd
import pytest

from audiolora.series.baselines import ridge, seasonal_naive
from audiolora.series.comparing import compare
from audiolora.series.metrics import score, summarise
from tests.series.tiny_fleet import HORIZON, LOOKBACK, SEASON, adapted, fleet, forecaster, tiny_net


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    return fleet(2)


def test_each_column_is_what_it_says(frame):
    base = tiny_net(quantiles=3)
    levels = {"quantiles": (0.1, 0.5, 0.9)}
    each = forecaster(adapted(copy.deepcopy(base)), **levels)
    start = frame["ds"][250]
    each.fit(frame, until=start, epochs=1, stride=6, lr=1e-2, quiet=True)
    table = compare(each, frame, seasonality=SEASON, origins=3, start=start)
    rolling = {"origins": 3, "start": start}
    cutoffs = each.cutoffs(frame, **rolling)
    assert table["forecast"].equals(each.backtest(frame, **rolling)["forecast"])
    alone = forecaster(base, **levels).backtest(frame, **rolling)
    for column in ("", "_q0.1", "_q0.5", "_q0.9"):
        pd.testing.assert_series_equal(
            table[f"zero_shot{column}"], alone[f"forecast{column}"], check_names=False, atol=1e-4
        )
    assert table["seasonal_naive"].equals(seasonal_naive(frame, cutoffs, HORIZON, SEASON, freq="h")["seasonal_naive"])
    linear = ridge(frame, cutoffs, HORIZON, LOOKBACK, freq="h", until=start)
    assert table["ridge"].equals(linear["ridge"])
    overall = summarise(score(table, frame, seasonality=SEASON), reference="zero_shot")
    assert set(overall["model"]) == {"forecast", "zero_shot", "seasonal_naive", "ridge"}
    assert set(overall["metric"]) == {"mae", "mse", "mase", "scaled_crps"} and (overall["devices"] == 2).all()


def test_a_network_trained_in_full_is_compared_with_another_forecaster(frame):
    other = forecaster(tiny_net(seed=1), name="base")
    table = compare(forecaster(), frame, seasonality=SEASON, others={"zero_shot": other})
    assert table["zero_shot"].equals(other.backtest(frame)["base"])
    assert "zero_shot" not in compare(forecaster(), frame, seasonality=SEASON)


def test_rows_are_those_that_all_have(frame):
    gap = frame[(frame["unique_id"] == "pump0") | (frame["ds"] != frame["ds"].max() - pd.Timedelta(hours=9))]
    assert set(compare(forecaster(), gap, seasonality=SEASON)["unique_id"]) == {"pump0"}
    with pytest.raises(ValueError, match="no device has a whole lookback"):
        compare(forecaster(), gap[gap["unique_id"] == "pump1"], seasonality=SEASON)


def test_a_name_twice_is_refused(frame):
    with pytest.raises(ValueError, match="others: ridge is a column already"):
        compare(forecaster(), frame, seasonality=SEASON, others={"ridge": forecaster()})
