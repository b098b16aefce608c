"""History in, forecast out: the windows and scaling of `audiolora.series` to the bit, and its numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from audiolora.edge import Session
from audiolora.edge import calendar as edge_calendar
from audiolora.edge.calendar import calendar
from audiolora.edge.forecasting import forecast_from, statistics, window
from audiolora.export import export
from audiolora.export.forecast_settings import ForecastSettings, forecast_settings
from audiolora.series.calendar import CALENDAR, with_calendar
from audiolora.series.forecaster import Forecaster
from audiolora.series.scaling import Robust, Scaler, Standard, WindowScaler
from audiolora.series.windows import latest
from tests.export.networks import randomise
from tests.series.tiny_fleet import HORIZON, LOOKBACK, adapted, fleet, tiny_net

KNOWN, PAST = ("hour_sin", "hour_cos"), ("load",)


def frame() -> pd.DataFrame:
    """Two devices; the last HORIZON rows have their calendar and no y yet."""
    table = fleet()
    table["load"] = np.sin(np.arange(len(table)) / 5) * 400 + 900
    table = with_calendar(table)[["unique_id", "ds", "y", *PAST, *KNOWN]]
    future = table.groupby("unique_id").cumcount(ascending=False) < HORIZON
    return table.assign(y=table["y"].where(~future), load=table["load"].where(~future))


def columns_of(table: pd.DataFrame, device: str) -> dict[str, np.ndarray]:
    """As a device has them: y and load up to now, the calendar HORIZON steps further."""
    rows = table[table["unique_id"] == device]
    columns = {name: rows[name] if name in KNOWN else rows[name].dropna() for name in ("y", *PAST, *KNOWN)}
    return {name: column.to_numpy(copy=True) for name, column in columns.items()}


def settings(scaler: Scaler, quantiles: tuple[float, ...] = ()) -> ForecastSettings:
    return forecast_settings(
        {"lookback": LOOKBACK, "horizon": HORIZON, "freq": "h", "quantiles": quantiles, "past": PAST, "known": KNOWN,
         "name": "forecast", "scaler": scaler.to_dict()}
    )  # fmt: skip


def measured() -> pd.DataFrame:
    return frame().dropna()


SCALERS = {
    "window": lambda: WindowScaler(),
    "another floor": lambda: WindowScaler(floor=0.9, unscaled=("load",)),
    "standard": lambda: Standard().fit(measured()),
    "robust": lambda: Robust(unscaled=(*CALENDAR, "load")).fit(measured()),
}


@pytest.mark.parametrize("kind", SCALERS)
def test_windows_and_scaling_are_the_forecasters_to_the_bit(kind: str) -> None:
    scaler = SCALERS[kind]()
    seen = latest(frame(), lookback=LOOKBACK, horizon=HORIZON, freq="h", known=KNOWN)
    wanted = scaler.statistics(seen)
    for i, device in enumerate(seen.unique_id):
        x, one = window(settings(scaler), columns_of(frame(), device))
        np.testing.assert_array_equal(x[0], seen.x[i])
        location, scale = statistics(settings(scaler), x, device)
        np.testing.assert_array_equal(location[0], wanted.location[i])
        np.testing.assert_array_equal(scale[0], wanted.scale[i])
        assert one
        y = np.linspace(-1, 2, HORIZON)[None]
        scaled: list[np.ndarray] = []

        def run(z: np.ndarray, kept: list[np.ndarray] = scaled, y: np.ndarray = y) -> np.ndarray:
            kept.append(z)
            return y

        found = forecast_from(settings(scaler), columns_of(frame(), device), device, run)
        np.testing.assert_array_equal(scaled[0][0], wanted.transform(seen.x)[i])
        np.testing.assert_array_equal(found, wanted.inverse_target(np.repeat(y, len(seen), 0))[i])


def test_a_constant_history_is_scaled_as_the_forecaster_does() -> None:
    for value in (0.0, 7.0):
        x = np.full((1, 4, LOOKBACK), value, np.float32)
        _, scale = statistics(settings(WindowScaler()), x, None)
        np.testing.assert_array_equal(scale[0, :2], [1.0, 1.0] if value == 0 else [0.007, 0.007])


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda h: h.pop("load"), "must have the columns y, load, hour_sin, hour_cos, got y, hour_sin, hour_cos"),
        (lambda h: h.update(other=h["y"]), "got y, load, hour_sin, hour_cos, other"),
        (lambda h: h.update(hour_sin=h["hour_sin"][:-1]), "hour_sin: shape"),
        (lambda h: h.update(y=h["y"][-40:], load=h["load"][-40:]), "at least 48 steps"),
        (lambda h: h["y"].__setitem__(-3, np.nan), "y: the last 48 values are not all finite"),
        (lambda h: h.update(load=3.0), "load: shape"),
    ],
)
def test_a_history_that_does_not_fit_is_told(change: Any, message: str) -> None:
    history = columns_of(frame(), "pump0")
    change(history)
    with pytest.raises(ValueError, match=message):
        window(settings(WindowScaler()), history)


def test_a_device_must_be_named_where_the_scaler_knows_several() -> None:
    x = np.ones((1, 4, LOOKBACK), np.float32)
    with pytest.raises(ValueError, match="knows pump0, pump1, and no device was named"):
        statistics(settings(SCALERS["standard"]()), x, None)
    with pytest.raises(ValueError, match="'pump9' is none of them"):
        statistics(settings(SCALERS["standard"]()), x, "pump9")
    alone = Standard().fit(measured()[lambda t: t["unique_id"] == "pump1"])
    assert statistics(settings(alone), x, None)[0][0, 0] == alone.devices["pump1"]["y"][0]


QUANTILES = ["forecast_q0.1", "forecast_q0.5", "forecast_q0.9"]


def test_a_forecaster_is_exported_with_its_scaling(tmp_path: Path) -> None:
    """The base knows both devices; the adapter has a scaler of its own, which knows one."""
    net = adapted(tiny_net(channels=4, quantiles=3))
    randomise(net)
    how = {"freq": "h", "quantiles": (0.1, 0.5, 0.9), "known": KNOWN, "past": PAST}
    both = Forecaster(net, LOOKBACK, HORIZON, scaler=Standard().fit(measured()), **how)
    own = Standard().fit(measured()[lambda t: t["unique_id"] == "pump1"][-100:])
    one = Forecaster(net, LOOKBACK, HORIZON, scaler=own, **how)
    made = export(
        both, tmp_path / "pumps", adapters={"default": "pump1"}, tasks={"default": forecast_settings(one.settings())}
    )
    assert made.manifest.task == replace(settings(both.scaler, (0.1, 0.5, 0.9)), step_s=3600.0)

    session = Session(tmp_path / "pumps", threads=1)
    session.load("pump1")
    history = columns_of(frame(), "pump1")
    device_rows = frame()[lambda t: t["unique_id"] == "pump1"]
    expected = one.predict(device_rows)[QUANTILES].to_numpy()
    found = session.forecast(history, "pump1")
    assert found.shape == (HORIZON, 3)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(session.bind("pump1").forecast(history), expected, rtol=1e-5)

    with net.disable_adapter():
        base = both.predict(frame())
    for device in ("pump0", "pump1"):
        rows = base[base["unique_id"] == device][QUANTILES].to_numpy()
        np.testing.assert_allclose(session.forecast(columns_of(frame(), device), device=device), rows, rtol=1e-5)
    many = {name: np.stack([values, values + 1]) for name, values in history.items()}
    assert session.forecast(many, "pump1").shape == (2, HORIZON, 3)
    np.testing.assert_allclose(session.forecast(many, "pump1")[0], found, rtol=1e-6)


def test_a_bundle_of_another_network_has_no_scaling(tmp_path: Path) -> None:
    from tests.export.small_bundle import write_base

    write_base(tmp_path)
    with pytest.raises(ValueError, match="not a forecaster's"):
        Session(tmp_path).forecast(np.ones(100))


@pytest.mark.parametrize("zone", ["UTC", "Europe/Paris", "Asia/Kolkata", "America/St_Johns"])
@pytest.mark.parametrize("ends", ["2024-03-31T00:30", "2024-10-27T03:00", "2024-02-29T23:45", "2023-07-02T06:07:30"])
def test_the_calendar_is_that_of_the_frames(zone: str, ends: str) -> None:
    past, ahead = 5, 3
    stamps = pd.date_range(end=pd.Timestamp(ends) + ahead * pd.Timedelta("45min"), periods=past + ahead, freq="45min")
    table = pd.DataFrame({"unique_id": "a", "ds": stamps.as_unit("ns"), "y": 0.0})
    wanted = with_calendar(table, time_zone=zone)
    assert edge_calendar.CALENDAR == CALENDAR
    found = calendar(ends, past, ahead, 45 * 60, zone)
    for name in CALENDAR:
        np.testing.assert_allclose(found[name], wanted[name], atol=1e-12)
    moment = pd.Timestamp(ends, tz="UTC").tz_convert("Asia/Tokyo").to_pydatetime()
    np.testing.assert_allclose(calendar(moment, past, ahead, 45 * 60, zone)["hour_sin"], found["hour_sin"])


def test_a_calendar_that_cannot_be_filled_in_is_refused() -> None:
    plain = ForecastSettings(4, 2, "h", (), (), (), "forecast", {"kind": "window", "floor": 1e-3, "unscaled": []})
    with_hours = replace(plain, known=("hour_sin",))
    for settings, zone, message in (
        (plain, "UTC", "reads no calendar"),
        (with_hours, None, "does not say by which zone"),
        (with_hours, "UTC", "has no fixed length; give the columns hour_sin"),
        (replace(with_hours, step_s=3600.0), "Mars/Olympus", "Mars/Olympus"),
    ):
        with pytest.raises(ValueError, match=message):
            forecast_from(settings, np.ones(4), None, lambda x: x[:, 0, :2], ends="2024-01-01", time_zone=zone)
