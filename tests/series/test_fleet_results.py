"""A fleet's scores: MASE by hand, baselines beside it, and what came of each device."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from audiolora.fleet import DeviceHistory
from audiolora.series.checks import check
from audiolora.series.fleet_forecaster import FleetForecaster
from audiolora.series.fleet_preparation import Prepared
from audiolora.series.fleet_progress import FleetBar
from audiolora.series.fleet_results import forecasts, results
from audiolora.series.fleet_settings import FleetSettings
from audiolora.series.fleet_times import fleet_times
from tests.series.tiny_fleet import HORIZON, LOOKBACK, SEASON, fleet, forecaster, tiny_net

SETTINGS = FleetSettings()
FRAME = fleet(4, steps=24 * 20)
TIMES = fleet_times(FRAME, history="12D", val="4D", test="2D")
IDS = ["pump0", "pump1", "pump2", "pump3"]


def history(best_step: int, status: str = "finished") -> DeviceHistory:
    best = 1.0 if best_step == 0 else 0.8
    return DeviceHistory(9, validation=[(0, 1.0), (9, best)], best_step=best_step, best_loss=best, status=status)


@pytest.fixture(scope="module")
def scored():
    """pump0 and pump1 have adapters: one that spoils every forecast, one that hardly matters; the others have none."""
    base = forecaster(tiny_net(), name="base")
    base.net.requires_grad_(False)
    start = FleetForecaster.of(base, {}, SETTINGS)
    row, slots = start.fleet.layout.start, start.fleet.layout.slots
    start.fleet.unload()
    bad, good = row.clone(), row.clone()
    head = next(slot for slot in slots if slot.key.endswith("head.bias"))
    bad[head.offset : head.offset + head.size] += 50
    good[head.offset : head.offset + head.size] *= 0.99
    own = FleetForecaster.of(base, {"pump0": bad, "pump1": good}, SETTINGS)
    found = forecasts(base, own, FRAME, TIMES, SEASON)
    findings = check(pd.concat([FRAME, FRAME[:30].assign(unique_id="still", y=3.0)]), freq="h")
    prepared = Prepared(FRAME, findings, TIMES, base, False, ("pump1", "pump2"), SEASON, ())
    histories = {"pump0": history(9), "pump1": history(9), "pump2": history(0), "pump3": history(0, "diverged: x")}
    return found, results(found, prepared, histories, ["pump0", "pump1"])


def test_every_model_forecasts_the_test_part_and_no_more(scored):
    found, _ = scored
    models = ["zero_shot", "adapted", "seasonal_naive", "ridge"]
    assert list(found.columns) == ["unique_id", "ds", "cutoff", "y", *models]
    assert found["ds"].min() == TIMES.val_until + pd.Timedelta("1h")
    assert found["ds"].max() == TIMES.test_until
    assert len(found) == 4 * 48 and found[models].notna().all().all()
    truth = FRAME.set_index(["unique_id", "ds"])["y"]
    np.testing.assert_array_equal(found["y"], truth.loc[list(zip(found["unique_id"], found["ds"], strict=True))])


def test_a_device_without_an_adapter_forecasts_as_the_base_bit_by_bit(scored):
    found, _ = scored
    same = found["unique_id"].isin(["pump2", "pump3"])
    assert found.loc[same, "adapted"].equals(found.loc[same, "zero_shot"])
    assert not np.allclose(found.loc[~same, "adapted"], found.loc[~same, "zero_shot"])


def test_mase_is_what_it_is_by_hand(scored):
    found, scores = scored
    one = scores.devices.set_index("unique_id").loc["pump1"]
    past = FRAME[(FRAME["unique_id"] == "pump1") & (FRAME["ds"] > TIMES.history_after)].set_index("ds")["y"]
    for model in ("zero_shot", "adapted", "seasonal_naive"):
        errors = [
            (part["y"] - part[model]).abs().mean() / past[past.index <= cutoff].diff(SEASON).abs().mean()
            for cutoff, part in found[found["unique_id"] == "pump1"].groupby("cutoff")
        ]
        np.testing.assert_allclose(one[model], np.mean(errors), rtol=1e-9)
    np.testing.assert_allclose(one["change"], one["adapted"] / one["zero_shot"] - 1)


def test_what_came_of_each_device(scored):
    _, scores = scored
    devices = scores.devices.set_index("unique_id")
    better = devices["adapted"] < devices["zero_shot"]
    assert devices.at["pump0", "outcome"] == "lost" and not better["pump0"]
    assert devices.at["pump1", "outcome"] == ("gained" if better["pump1"] else "lost")
    assert list(devices.loc[["pump2", "pump3"], "outcome"]) == ["fell back"] * 2
    assert devices.at["pump3", "why"] == "diverged: x"
    assert devices.at["still", "outcome"] == "left out" and "y: constant" in devices.at["still", "why"]
    assert scores.count("fell back") == 2


def test_totals_are_means_over_devices(scored):
    _, scores = scored
    devices = scores.devices.set_index("unique_id")
    totals = scores.totals.set_index("model")
    np.testing.assert_allclose(totals.at["adapted", "value"], devices.loc[IDS, "adapted"].mean())
    assert totals.at["adapted", "devices"] == 4 and scores.kept["devices"].max() == 2
    unseen = scores.unseen.set_index("model")
    np.testing.assert_allclose(unseen.at["zero_shot", "value"], devices.loc[["pump0", "pump3"], "zero_shot"].mean())


def test_a_device_with_too_few_windows_for_ridge_has_none(scored):
    base = forecaster(tiny_net(), name="base")
    base.net.requires_grad_(False)
    own = FleetForecaster.of(base, {}, SETTINGS)
    late = FRAME["unique_id"].eq("pump3") & (FRAME["ds"] <= TIMES.val_until - pd.Timedelta(hours=LOOKBACK + 10))
    found = forecasts(base, own, FRAME[~late], TIMES, SEASON)
    assert found.loc[found["unique_id"] == "pump3", "ridge"].isna().all()
    assert found.loc[found["unique_id"] != "pump3", "ridge"].notna().all()
    assert found["zero_shot"].notna().all() and len(found) == 4 * 48


def test_a_test_part_shorter_than_the_horizon_is_refused():
    base = forecaster(tiny_net())
    times = fleet_times(FRAME, val="4D", test=pd.Timedelta(hours=HORIZON - 1))
    with pytest.raises(ValueError, match=f"shorter than the horizon of {HORIZON}"):
        forecasts(base, FleetForecaster.of(base, {}, SETTINGS), FRAME, times, SEASON)


def test_the_bar_counts_devices():
    from rich.console import Console

    with FleetBar(4, Console(quiet=True)) as bar:
        bar.watch({"a": history(9), "b": history(0, "stopped early"), "c": history(0, "training")})
        assert bar.text() == "2 done, 1 stopped early, 2 losing"
        bar.watch({"c": history(9)})
        assert bar.text() == "3 done, 1 stopped early, 1 losing"
