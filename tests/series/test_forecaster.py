"""The forecaster: its contract with the network, units, leakage, quantiles, covariates."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from audiolora.series.forecaster import Forecaster
from audiolora.series.scaling import Standard
from tests.series.tiny_fleet import HORIZON, LOOKBACK, adapted, fleet, forecaster, tiny_net

LEVELS = (0.1, 0.5, 0.9)


class LastValues(nn.Module):
    """The last ``HORIZON`` values of one channel, as they stand."""

    def __init__(self, channel: int = 0, quantiles: int = 0) -> None:
        super().__init__()
        self.channel, self.quantiles = channel, quantiles

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x[:, self.channel, -HORIZON:]
        # In descending order, which the forecaster has to mend.
        return torch.stack([y - i for i in range(self.quantiles)], -1) if self.quantiles else y


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    return fleet(2)


def test_a_forecast_is_in_the_unit_of_y_behind_the_last_measurement(frame):
    found = forecaster(LastValues()).predict(frame)
    assert list(found) == ["unique_id", "ds", "cutoff", "forecast"]
    for unique_id, rows in found.groupby("unique_id"):
        own = frame[frame["unique_id"] == unique_id]
        np.testing.assert_allclose(rows["forecast"], own["y"].tail(HORIZON), rtol=1e-5)
        ahead = pd.date_range(own["ds"].max(), periods=HORIZON + 1, freq="h")
        assert rows["ds"].tolist() == ahead[1:].tolist() and set(rows["cutoff"]) == {ahead[0]}


def test_quantiles_do_not_cross_and_the_median_is_the_forecast(frame):
    found = forecaster(LastValues(quantiles=3), quantiles=LEVELS).predict(frame)
    columns = ["forecast_q0.1", "forecast_q0.5", "forecast_q0.9"]
    assert (np.diff(found[columns].to_numpy(), axis=1) > 0).all()
    assert found["forecast"].equals(found["forecast_q0.5"])


def test_known_covariates_come_from_the_horizon_and_past_ones_end_at_the_cutoff(frame):
    hours = np.arange(len(frame)).astype(float)
    full = frame.assign(load=hours, plan=-hours)
    cut = {"known": ["plan"], "past": ["load"], "scaler": Standard(unscaled=("y", "load", "plan"))}
    cutoff = frame["ds"][200]
    settings = {"origins": 1, "start": cutoff}
    plan = Forecaster(LastValues(2), LOOKBACK, HORIZON, freq="h", **cut)
    load = Forecaster(LastValues(1), LOOKBACK, HORIZON, freq="h", **cut)
    for each in (plan, load):
        each.scaler = each.scaler.fit(full)
    first = plan.backtest(full, **settings)["forecast"][:HORIZON]
    assert first.tolist() == [-201.0, -202.0, -203.0, -204.0, -205.0, -206.0]
    assert load.backtest(full, **settings)["forecast"][:HORIZON].tolist() == [195.0, 196.0, 197.0, 198.0, 199.0, 200.0]


@pytest.mark.parametrize("seed", range(3))
def test_what_happens_behind_a_cutoff_never_changes_its_forecast(frame, seed):
    rng = np.random.default_rng(seed)
    full = frame.assign(load=rng.standard_normal(len(frame)))
    each = Forecaster(tiny_net(2), LOOKBACK, HORIZON, freq="h", past=["load"])
    before = each.backtest(full, origins=4, step=5)
    for cutoff in before["cutoff"].unique():
        later = full["ds"] > cutoff
        changed = full.assign(
            y=full["y"].mask(later, 1e3 * rng.standard_normal(len(full))), load=full["load"].mask(later, 7.0)
        )
        after = each.backtest(changed, origins=4, step=5)
        same = before["cutoff"] <= cutoff
        pd.testing.assert_series_equal(after["forecast"][same], before["forecast"][same])


def test_what_lies_behind_until_never_changes_a_fit(frame):
    until = frame["ds"][250]
    ends = []
    for value in (None, 1e6):
        each = forecaster(scaler=Standard())
        changed = frame if value is None else frame.assign(y=frame["y"].mask(frame["ds"] > until, value))
        each.fit(changed, until=until, epochs=1, stride=4, quiet=True)
        ends.append((each.net.head.weight.detach().clone(), each.scaler))
    assert torch.equal(ends[0][0], ends[1][0]) and ends[0][1] == ends[1][1]


def test_a_backtest_rolls_its_origin_and_carries_what_came(frame):
    found = forecaster().backtest(frame, origins=3, step=4)
    last = frame["ds"].max()
    hour = pd.Timedelta(hours=1)
    assert sorted(found["cutoff"].unique()) == [last - hours * hour for hours in (14, 10, 6)]
    assert ((found["ds"] - found["cutoff"]) / hour).tolist() == [*range(1, HORIZON + 1)] * 6
    actual = frame.set_index(["unique_id", "ds"])["y"]
    wanted = actual.reindex(pd.MultiIndex.from_frame(found[["unique_id", "ds"]]))
    assert found["y"].tolist() == wanted.tolist()


def test_a_backtest_s_forecast_is_that_of_predict_on_the_past_alone(frame):
    each, cutoff = forecaster(), frame["ds"][180]
    rolled = each.backtest(frame, start=cutoff)
    alone = each.predict(frame[frame["ds"] <= cutoff])
    pd.testing.assert_frame_equal(rolled.drop(columns="y"), alone)


def test_a_gap_leaves_out_the_device_it_is_in(frame):
    gap = frame[(frame["unique_id"] == "pump0") | (frame["ds"] != frame["ds"].max() - pd.Timedelta(hours=9))]
    assert set(forecaster().predict(gap)["unique_id"]) == {"pump0"}
    nothing = gap[gap["unique_id"] == "pump1"]
    assert forecaster().predict(nothing).empty and forecaster().backtest(nothing).empty


@pytest.mark.parametrize("loss", ["huber", "pinball"])
def test_training_learns(frame, loss):
    quantiles = LEVELS if loss == "pinball" else ()
    settings = {"quantiles": quantiles} if quantiles else {"loss": loss}
    each = forecaster(tiny_net(quantiles=len(quantiles)), **settings)
    history = each.fit(frame, epochs=3, lr=1e-2, batch_size=8, stride=3, quiet=True)
    assert history["val_loss"].min() < 0.8 * history["val_loss"][0]
    assert each.predict(frame)["forecast"].notna().all()


def test_fit_trains_the_adapters_alone_and_shows_a_table(frame, capsys):
    net = adapted(tiny_net())
    frozen = {name: p.clone() for name, p in net.named_parameters() if not p.requires_grad}
    trained = {name: p.clone() for name, p in net.named_parameters() if p.requires_grad}
    forecaster(net).fit(frame, epochs=2, stride=6, val="2D")
    now = dict(net.named_parameters())
    assert all(torch.equal(now[name], tensor) for name, tensor in frozen.items())
    assert not all(torch.equal(now[name], tensor) for name, tensor in trained.items())
    printed = capsys.readouterr().out.split("\n")
    assert printed[0].split() == ["epoch", "loss", "val_loss"] and sum("best" in line for line in printed) == 1


class Wrong(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, :, -HORIZON:]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda: forecaster(Wrong()),
            r"must map x \(2, 1, 48\) \(N, channels y, lookback\) to \(2, 6\), and gives \(2, 1, 6\)",
        ),
        (lambda: forecaster(tiny_net(2)), r"must map x \(2, 1, 48\).*and fails: .*to have 2 channels, but got 1"),
        (lambda: forecaster(tiny_net(), quantiles=LEVELS), r"to \(2, 6, 3\), and gives \(2, 6\); change its head"),
        (lambda: forecaster(quantiles=(0.1, 0.9)), r"with 0.5 among them, got \(0.1, 0.9\)"),
        (lambda: forecaster(quantiles=(0.9, 0.5)), "must ascend"),
        (lambda: forecaster(loss="rmse"), "loss must be one of"),
        (lambda: forecaster(known="load"), r"known must be a list of columns.*\['load'\]"),
        (lambda: forecaster(known=["a"], past=["a"]), "a: named more than once"),
        (lambda: forecaster(past=["y"]), "have a meaning of their own"),
        (lambda: forecaster(freq="fortnight"), "freq 'fortnight'"),
    ],
)
def test_a_network_or_a_setting_that_does_not_fit(make, said):
    with pytest.raises(ValueError, match=said):
        make()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"val": 1.5}, "val must be a fraction between 0 and 1, or a timedelta shorter than"),
        ({"val": "90D"}, "val must be"),
        ({"val": "3h"}, r"no window to validate by: 6 targets in a row behind .*\(val='3h'\)"),
        ({"until": "2024-01-02"}, r"no window to train on: lookback \+ horizon = 54 steps.*pump0 \(0 lost"),
        ({"epochs": 0}, "epochs must be"),
    ],
)
def test_a_fit_that_cannot_be(frame, settings, said):
    with pytest.raises(ValueError, match=said):
        forecaster().fit(frame, quiet=True, **settings)


def test_a_column_or_an_origin_that_is_not_there(frame):
    each = Forecaster(tiny_net(2), LOOKBACK, HORIZON, freq="h", past=["load"])
    with pytest.raises(ValueError, match="no column load"):
        each.predict(frame)
    with pytest.raises(ValueError, match="has nothing behind it"):
        forecaster().backtest(frame, origins=3, start=frame["ds"].max())
    with pytest.raises(ValueError, match="origins and step must be at least 1"):
        forecaster().backtest(frame, origins=0)
