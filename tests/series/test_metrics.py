"""Errors against pandas and NumPy by hand, intervals against their definition."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from audiolora.series.metrics import mean_interval, models_of, score, summarise
from tests.series.tiny_fleet import fleet

SEASON, HORIZON = 24, 6


@pytest.fixture(scope="module")
def table() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Forecasts of a model with quantiles and of one without, for two devices at two cutoffs; and the history."""
    history, rng = fleet(2, 24 * 6), np.random.default_rng(1)
    parts = []
    for hour in (96, 120):
        cutoff = history["ds"][hour]
        rows = history[(history["ds"] > cutoff) & (history["ds"] <= history["ds"][hour + HORIZON])]
        parts.append(rows.assign(cutoff=cutoff))
    rows = pd.concat(parts, ignore_index=True)
    noise = rng.standard_normal((len(rows), 4))
    net = rows["y"] + noise[:, 0]
    quantiles = {"net_q0.1": net - 1, "net_q0.5": net, "net_q0.9": net + 1}
    return rows.assign(net=net, **quantiles, naive=rows["y"] + 2 * noise[:, 3]), history


def by_hand(rows: pd.DataFrame, history: pd.DataFrame, model: str) -> dict[str, float]:
    """One device at one cutoff."""
    error = (rows["y"] - rows[model]).to_numpy()
    past = history[(history["unique_id"] == rows["unique_id"].iloc[0]) & (history["ds"] <= rows["cutoff"].iloc[0])]
    y = past["y"].to_numpy()
    scale = np.abs(y[SEASON:] - y[:-SEASON]).mean()
    columns = (
        {0.1: "net_q0.1", 0.5: "net_q0.5", 0.9: "net_q0.9"} if model == "net" else dict.fromkeys((0.1, 0.5, 0.9), model)
    )
    pinball = []
    for q, column in columns.items():
        e = (rows["y"] - rows[column]).to_numpy()
        pinball.append(np.where(e > 0, q * e, (q - 1) * e))
    crps = 2 * np.mean(pinball, axis=0).sum() / rows["y"].abs().sum()
    return {
        "mae": np.abs(error).mean(),
        "mse": (error**2).mean(),
        "mase": np.abs(error).mean() / scale,
        "scaled_crps": crps,
    }


@pytest.mark.parametrize("by", ["unique_id", "cutoff", ["unique_id", "cutoff"]])
def test_scores_are_those_by_hand(table, by):
    forecasts, history = table
    cells = [
        {"unique_id": unique_id, "cutoff": cutoff, "model": model, **by_hand(rows, history, model)}
        for (unique_id, cutoff), rows in forecasts.groupby(["unique_id", "cutoff"])
        for model in ("net", "naive")
    ]
    keys = [*([by] if isinstance(by, str) else by), "model"]
    metrics = ["mae", "mse", "mase", "scaled_crps"]
    wanted = pd.DataFrame(cells).groupby(keys)[metrics].mean().sort_index()
    found = score(forecasts, history, seasonality=SEASON, by=by).set_index(keys).sort_index()
    pd.testing.assert_frame_equal(found[metrics], wanted, check_names=False)


def test_the_crps_of_a_point_is_its_absolute_error(table):
    """Over quantiles that lie symmetrically: |e| summed, over |y| summed."""
    forecasts, history = table
    found = score(forecasts, history, seasonality=SEASON, by=["unique_id", "cutoff"])
    naive = found[found["model"] == "naive"].set_index(["unique_id", "cutoff"])["scaled_crps"]
    rows = forecasts.assign(e=(forecasts["y"] - forecasts["naive"]).abs(), size=forecasts["y"].abs())
    sums = rows.groupby(["unique_id", "cutoff"])[["e", "size"]].sum()
    np.testing.assert_allclose(naive, (sums["e"] / sums["size"]).reindex(naive.index))


def test_nixtla_s_names_of_quantiles_are_the_same_quantiles(table):
    forecasts, history = table
    names = {"net_q0.1": "net-lo-80", "net_q0.9": "net-hi-80"}
    theirs = score(forecasts.rename(columns=names), history, seasonality=SEASON)
    pd.testing.assert_frame_equal(theirs, score(forecasts, history, seasonality=SEASON))


def test_without_quantiles_there_is_no_crps_and_the_past_alone_scales(table):
    forecasts, history = table
    points = forecasts.drop(columns=[name for name in forecasts if "_q" in name])
    found = score(points, history, seasonality=SEASON)
    assert "scaled_crps" not in found
    later = history.assign(y=history["y"].where(history["ds"] <= forecasts["cutoff"].max(), 1e6))
    pd.testing.assert_frame_equal(score(points, later, seasonality=SEASON), found)


def test_missing_actuals_are_left_out_for_all(table):
    forecasts, history = table
    some = forecasts.assign(y=forecasts["y"].mask(forecasts.index % 3 == 0))
    pd.testing.assert_frame_equal(
        score(some, history, seasonality=SEASON), score(some.dropna(), history, seasonality=SEASON)
    )


def test_a_constant_history_has_no_mase_and_zeros_have_no_crps(table):
    forecasts, history = table
    zeros = history.assign(y=history["y"].mask(history["unique_id"] == "pump0", 0.0))
    dead = forecasts.assign(y=forecasts["y"].mask(forecasts["unique_id"] == "pump0", 0.0))
    found = score(dead, zeros, seasonality=SEASON).set_index(["unique_id", "model"])
    assert found.loc["pump0", ["mase", "scaled_crps"]].isna().all(axis=None)
    assert found.loc["pump1"].notna().all(axis=None) and found["mae"].notna().all()
    overall = summarise(found.reset_index()).set_index(["metric", "model"])
    assert overall.loc[("mase", "net"), "devices"] == 1 and overall.loc[("mae", "net"), "devices"] == 2


def test_models_are_told_from_quantiles():
    columns = ["unique_id", "ds", "cutoff", "y", "a", "a_q0.25", "a-lo-90", "b_q0.5", "low-level"]
    assert models_of(pd.DataFrame(columns=columns)) == {
        "a": {0.05: "a-lo-90", 0.25: "a_q0.25"},
        "b_q0.5": {},
        "low-level": {},
    }


def spread(models: int = 2, devices: int = 12) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    rows = [
        {"unique_id": f"d{i}", "model": f"m{j}", "mae": 1 + j * 0.1 + rng.gamma(2.0, 0.2)}
        for i in range(devices)
        for j in range(models)
    ]
    return pd.DataFrame(rows)


def test_intervals_are_the_percentile_bootstrap_over_devices():
    scores = spread()
    found = summarise(scores, reference="m0", seed=3).set_index("model")
    wide = scores.pivot(index="unique_id", columns="model", values="mae")
    interval = stats.bootstrap(
        (wide["m1"].to_numpy(),), np.mean, n_resamples=2000, method="percentile", rng=np.random.default_rng(3)
    ).confidence_interval
    assert (found.loc["m1", "low"], found.loc["m1", "high"]) == (interval.low, interval.high)
    change = wide["m1"] - wide["m0"]
    assert found.loc["m1", "change"] == pytest.approx(change.mean())
    assert found.loc["m1", "wins"] == (change < 0).sum()
    assert found.loc["m1", "worst"] == pytest.approx((wide["m1"] / wide["m0"] - 1).max())
    assert found.loc["m0", ["change", "change_low", "change_high", "wins"]].eq(0).all()


def test_the_interval_covers_the_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(100):
        low, high = mean_interval(rng.normal(1.0, 1.0, 40), resamples=300, seed=seed)
        covered += low <= 1.0 <= high
    assert 85 <= covered <= 100


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda f: f.drop(columns="cutoff"), "cutoff are missing"),
        (lambda f: f[["unique_id", "ds", "cutoff", "y"]], "no model"),
        (lambda f: f.head(0), "no rows"),
        (
            lambda f: f.assign(naive=f["naive"].mask(f.index == 7)),
            r"pump\d, cutoff .*: naive forecasts nan .*0 more rows",
        ),
        (lambda f: f.assign(**{"naive_q0.3": 1.0}), "same quantiles"),
        (lambda f: f.assign(cutoff=pd.Timestamp("2024-01-01 12:00")), r"more than 24 steps.*pump0: 13 rows"),
    ],
)
def test_what_cannot_be_scored_is_said(table, change, said):
    forecasts, history = table
    with pytest.raises(ValueError, match=said):
        score(change(forecasts), history, seasonality=SEASON)


def test_wrong_settings(table):
    forecasts, history = table
    with pytest.raises(ValueError, match="seasonality must be at least 1"):
        score(forecasts, history, seasonality=0)
    with pytest.raises(ValueError, match="by must name"):
        score(forecasts, history, seasonality=SEASON, by="device")
    with pytest.raises(ValueError, match="reference must be one of"):
        summarise(spread(), reference="base")
    with pytest.raises(ValueError, match="one row a device and model"):
        summarise(pd.concat([spread(), spread()]))
