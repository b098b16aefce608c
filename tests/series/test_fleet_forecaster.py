"""A fleet as one forecaster: each device by its own adapter, files, and one device taken out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from audiolora.series.bases import load_base
from audiolora.series.fleet_forecaster import FleetForecaster
from audiolora.series.fleet_settings import FleetSettings
from audiolora.series.fleet_times import fleet_times
from audiolora.series.fleet_training import train_chunk
from audiolora.series.forecaster import Forecaster
from audiolora.series.scaling import Standard
from tests.series.tiny_fleet import HORIZON, fleet, forecaster, tiny_net

SETTINGS = FleetSettings(epochs=2, lr=1e-2, batch_size=8, stride=6)
FRAME = fleet(4, steps=24 * 14)
IDS = ["pump0", "pump2", "pump3"]  # pump1 has no adapter


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with base/ and adapters/, and the forecasts of all devices."""
    folder = tmp_path_factory.mktemp("fleet")
    base = forecaster(tiny_net(), scaler=Standard().fit(FRAME), name="zero_shot")
    base.save(folder / "base")
    base.net.requires_grad_(False)
    times = fleet_times(FRAME, val="3D", test="2D")
    values = train_chunk(base, FRAME[FRAME["unique_id"].isin(IDS)], times, SETTINGS).values
    own = FleetForecaster.of(base, values, SETTINGS)
    own.save(folder / "adapters")
    return folder, own.predict(FRAME)


def of(table, device, name="adapted"):
    return table.loc[table["unique_id"] == device, name].to_numpy()


def test_each_device_forecasts_as_its_exported_adapter_alone(saved):
    folder, together = saved
    own = FleetForecaster.load(load_base(folder), folder / "adapters")
    for device in IDS:
        own.export(device, folder / device)
        alone = Forecaster.load(load_base(folder).net, folder / device)
        assert list(alone.scaler.devices) == [device]
        forecast = alone.predict(FRAME[FRAME["unique_id"] == device])
        np.testing.assert_allclose(of(forecast, device), of(together, device), rtol=1e-5)


def test_a_device_without_an_adapter_gets_the_base(saved):
    folder, together = saved
    base = load_base(folder).predict(FRAME)
    np.testing.assert_allclose(of(together, "pump1"), of(base, "pump1", "zero_shot"), rtol=1e-6)
    assert not np.allclose(of(together, "pump2"), of(base, "pump2", "zero_shot"), rtol=1e-3)


def test_what_is_saved_is_what_is_loaded(saved):
    folder, together = saved
    again = FleetForecaster.load(load_base(folder), folder / "adapters")
    assert again.predict(FRAME).equals(together)
    some = FleetForecaster.load(load_base(folder), folder / "adapters", ["pump3"])
    assert some.fleet.ids == ["pump3"]
    np.testing.assert_allclose(of(some.predict(FRAME), "pump3"), of(together, "pump3"), rtol=1e-6)


def test_a_backtest_is_made_of_forecasts_from_each_origin(saved):
    folder, _ = saved
    own = FleetForecaster.load(load_base(folder), folder / "adapters")
    table = own.backtest(FRAME, origins=2)
    cutoff = table["cutoff"].min()
    past = own.predict(FRAME[FRAME["ds"] <= cutoff])
    assert len(past) == 4 * HORIZON
    np.testing.assert_allclose(table.loc[table["cutoff"] == cutoff, "adapted"], past["adapted"], rtol=1e-5)


def test_a_fleet_without_adapters_is_the_base(saved):
    folder, _ = saved
    none = FleetForecaster.of(load_base(folder), {}, SETTINGS)
    none.save(folder / "none")
    again = FleetForecaster.load(load_base(folder), folder / "none")
    assert again.fleet.ids == []
    base = load_base(folder).predict(FRAME)["zero_shot"]
    np.testing.assert_allclose(again.predict(FRAME)["adapted"], base, rtol=1e-6)


def test_refusals_name_what_is_wrong(saved, tmp_path):
    folder, _ = saved
    own = FleetForecaster.load(load_base(folder), folder / "adapters")
    with pytest.raises(ValueError, match="pump1 has no adapter"):
        own.export("pump1", tmp_path / "pump1")
    with pytest.raises(TypeError, match="train_chunk"):
        own.fit(FRAME)
    other = load_base(folder)
    with torch.no_grad():
        other.net.head.bias.add_(1)
    with pytest.raises(ValueError, match="another base"):
        FleetForecaster.load(other, folder / "adapters")
    with pytest.raises(ValueError, match="no fleet of forecasters"):
        FleetForecaster.load(load_base(folder), tmp_path)
    with pytest.raises(ValueError, match="no base that can be built.*network.json"):
        load_base(tmp_path)
