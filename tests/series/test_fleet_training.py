"""A fleet's adapters: what they look at, that company changes nothing, when the base is kept, and their files."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch

from audiolora.fleet import DeviceHistory
from audiolora.series.fleet_engines import train_fleet
from audiolora.series.fleet_settings import FleetSettings
from audiolora.series.fleet_times import fleet_times, without_windows
from audiolora.series.fleet_training import (
    device_samples,
    fleet_config,
    keeps_base,
    load_trained,
    save_trained,
    train_chunk,
)
from audiolora.series.scaling import Standard
from tests.series.tiny_fleet import HORIZON, LOOKBACK, fleet, forecaster, tiny_net

SETTINGS = FleetSettings(epochs=2, lr=1e-2, batch_size=8, stride=6, patience=2)
FRAME = fleet(3, steps=24 * 16)
TIMES = fleet_times(FRAME, history="8D", val="3D", test="2D")


@pytest.fixture(scope="module")
def base():
    found = forecaster(tiny_net())
    found.net.requires_grad_(False)
    return found


@pytest.fixture(scope="module")
def trained(base):
    return train_chunk(base, FRAME, TIMES, SETTINGS)


def test_samples_are_the_scaled_windows_of_each_device(base):
    found = device_samples(base, FRAME, after=TIMES.train_until, until=TIMES.val_until, stride=6)
    rows = FRAME[(FRAME["unique_id"] == "pump1") & (FRAME["ds"] <= TIMES.val_until)]
    y, ds = rows["y"].to_numpy(), rows["ds"]
    first = int((ds <= TIMES.train_until).sum())  # of the first target
    x, target = found["pump1"]
    seen = y[first - LOOKBACK : first]
    np.testing.assert_allclose(x[0, 0], (seen - seen.mean()) / seen.std(), atol=1e-5)
    np.testing.assert_allclose(target[0], (y[first : first + HORIZON] - seen.mean()) / seen.std(), atol=1e-5)
    assert len(x) == len(target) == (24 * 3 - HORIZON) // 6 + 1


def test_nothing_outside_of_history_and_validation_is_looked_at(base, trained):
    outside = (FRAME["ds"] <= TIMES.history_after) | (FRAME["ds"] > TIMES.val_until)
    poisoned = FRAME.assign(y=FRAME["y"].mask(outside, 1e6))
    again = train_chunk(base, poisoned, TIMES, SETTINGS)
    assert all(torch.equal(again.values[name], row) for name, row in trained.values.items())


def test_the_validation_part_chooses_and_does_not_teach(base, trained):
    held = (FRAME["ds"] > TIMES.train_until) & (FRAME["ds"] <= TIMES.val_until)
    other = train_chunk(base, FRAME.assign(y=FRAME["y"].mask(held, FRAME["y"] * 1.5)), TIMES, SETTINGS)
    for name, one in trained.history.items():
        shared = min(one.steps, other.history[name].steps)
        assert list(one.losses)[:shared] == list(other.history[name].losses)[:shared]
        assert one.validation != other.history[name].validation


def test_a_device_trains_in_company_as_alone(base, trained):
    alone = train_chunk(base, FRAME[FRAME["unique_id"] == "pump1"], TIMES, SETTINGS)
    np.testing.assert_allclose(alone.history["pump1"].losses, trained.history["pump1"].losses, rtol=1e-5)
    torch.testing.assert_close(alone.values["pump1"], trained.values["pump1"], rtol=1e-4, atol=1e-5)


def test_chunks_are_resumed_and_not_trained_again(base, trained, tmp_path, monkeypatch):
    chunks = {name: FRAME[FRAME["unique_id"] == name] for name in ("pump0", "pump1")}
    whole = train_fleet(base, chunks, TIMES, SETTINGS, out=tmp_path / "whole")

    def stop(history):
        if "pump1" in history and history["pump1"].steps == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_fleet(base, chunks, TIMES, SETTINGS, out=tmp_path / "again", watch=stop)
    assert load_trained(tmp_path / "again" / "pump0") is not None
    assert load_trained(tmp_path / "again" / "pump1") is None
    seen = []
    again = train_fleet(base, chunks, TIMES, SETTINGS, out=tmp_path / "again", watch=lambda h: seen.append(set(h)))
    assert seen[0] == {"pump0"} and all(one == {"pump1"} for one in seen[1:])
    assert again.history == whole.history
    assert all(torch.equal(again.values[name], row) for name, row in whole.values.items())


def test_what_a_chunk_came_to_is_written_and_read(trained, tmp_path):
    save_trained(trained, tmp_path / "chunk")
    again = load_trained(tmp_path / "chunk")
    assert again.history == trained.history
    assert list(again.values) == list(trained.values)
    assert all(torch.equal(again.values[name], row) for name, row in trained.values.items())
    assert load_trained(tmp_path / "other") is None


def test_the_base_is_kept_where_the_adapter_does_not_beat_it():
    def history(start, best, step):
        return DeviceHistory(9, validation=[(0, start), (9, best)], best_step=step, best_loss=min(start, best))

    assert keeps_base(history(1.0, 1.2, 0), SETTINGS)
    assert not keeps_base(history(1.0, 0.99, 9), SETTINGS)
    assert keeps_base(history(1.0, 0.99, 9), dataclasses.replace(SETTINGS, least_gain=0.02))
    assert keeps_base(history(float("nan"), 0.99, 9), SETTINGS)


def test_a_config_has_what_the_settings_say(base):
    config = fleet_config(base.net, dataclasses.replace(SETTINGS, r=3, bias=False, head=False))
    assert (config.r, config.lora_bias, config.modules_to_save) == (3, False, None)
    with pytest.raises(ValueError, match="no module 'last'.*head=False"):
        fleet_config(base.net, SETTINGS, head="last")


def test_times_are_set_back_from_where_the_median_device_ends():
    late = FRAME.assign(ds=FRAME["ds"].mask(FRAME.index == len(FRAME) - 1, pd.Timestamp("2099-01-01")))
    assert fleet_times(late, val="3D", test="2D") == fleet_times(FRAME, val="3D", test="2D")
    last = FRAME["ds"].max()
    assert TIMES.test_until == last
    assert TIMES.val_until == last - pd.Timedelta("2D")
    assert TIMES.train_until == last - pd.Timedelta("5D")
    assert TIMES.history_after == last - pd.Timedelta("13D")
    with pytest.raises(ValueError, match="history must be a positive timedelta.*'soon'"):
        fleet_times(FRAME, history="soon", val="3D", test="2D")


def test_devices_without_a_window_are_named(base):
    part = (FRAME["ds"] > TIMES.train_until) & (FRAME["ds"] <= TIMES.val_until) & (FRAME["unique_id"] == "pump2")
    holes = FRAME.assign(y=FRAME["y"].mask(part & (FRAME["ds"].dt.hour % 4 == 0)))
    found = without_windows(base, holes, TIMES)
    assert found[["unique_id", "column", "problem", "bad"]].values.tolist() == [["pump2", "y", "too_short", True]]
    assert "no window to validate by" in found["detail"][0]
    with pytest.raises(ValueError, match="pump2: no window"):
        train_chunk(base, holes, TIMES, SETTINGS)


def test_a_fitted_scaler_scales_each_device_by_its_own(base):
    scaled = forecaster(tiny_net(), scaler=Standard().fit(FRAME, until=TIMES.train_until))
    x, _ = device_samples(scaled, FRAME, after=TIMES.train_until, until=TIMES.val_until, stride=6)["pump2"]
    rows = FRAME[(FRAME["unique_id"] == "pump2")]
    past = rows.loc[rows["ds"] <= TIMES.train_until, "y"]
    first = len(past)
    wanted = (rows["y"].to_numpy()[first - LOOKBACK : first] - past.mean()) / past.std(ddof=0)
    np.testing.assert_allclose(x[0, 0], wanted, atol=1e-5)


@pytest.mark.parametrize("name, value", [("r", 0), ("lr", 0.0), ("pull", -1.0), ("least_gain", 1.0), ("seed", -1)])
def test_a_setting_outside_of_its_range_is_refused(name, value):
    with pytest.raises(ValueError, match=name):
        FleetSettings(**{name: value})
