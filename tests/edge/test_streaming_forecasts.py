"""A forecaster's stream: at each step what it would forecast from there, in the unit of y; and the command line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from audiolora import cli
from audiolora.edge import Session, Stream
from audiolora.edge.stream_forecasting import forecast_steps
from audiolora.export import export
from audiolora.export.forecast_settings import forecast_settings
from audiolora.series.forecaster import Forecaster
from audiolora.series.scaling import Standard, WindowScaler
from tests.edge.test_forecasting import KNOWN, PAST, columns_of, frame, measured, settings
from tests.export.networks import randomise
from tests.series.tiny_fleet import HORIZON, LOOKBACK, adapted, fleet, forecaster, tiny_net

NETWORK = """
from tests.series.tiny_fleet import tiny_net

def network():
    return tiny_net(seed=4)
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Forecaster, Session]:
    """Two covariates known ahead, one from the past, two devices, three quantiles."""
    model = adapted(tiny_net(4, quantiles=3, seed=2))
    randomise(model)
    scaler = Standard(unscaled=KNOWN).fit(measured())
    how: dict[str, Any] = {"past": PAST, "known": KNOWN, "quantiles": [0.1, 0.5, 0.9], "scaler": scaler}
    wanted = forecaster(model, **how)
    folder = tmp_path_factory.mktemp("streamed") / "b"
    export(wanted, folder, streaming=True)
    session = Session(folder, threads=1)
    session.load("default")
    return wanted, session


def chunks(columns: dict[str, np.ndarray], sizes: list[int]) -> list[dict[str, np.ndarray]]:
    """As they come: at each step y and the past, and what is known of the step that is HORIZON ahead."""
    ahead = {name: value[..., HORIZON:] if name in KNOWN else value for name, value in columns.items()}
    cuts = np.cumsum(sizes)[:-1]
    parts = {name: np.split(value, cuts, axis=-1) for name, value in ahead.items()}
    return [{name: parts[name][i] for name in parts} for i in range(len(sizes))]


def joined(stream: Stream, columns: dict[str, np.ndarray], sizes: list[int], device: str) -> np.ndarray:
    return np.concatenate([stream.forecast(chunk, device=device) for chunk in chunks(columns, sizes)], axis=-3)


def test_each_step_forecasts_what_the_session_would_from_there(made: tuple[Forecaster, Session]) -> None:
    forecasts, session = made
    for device in ("pump0", "pump1"):
        columns = columns_of(frame(), device)
        steps = len(columns["y"])
        rows = forecasts.predict(frame()[lambda t, d=device: t["unique_id"] == d])
        for stream in (session.stream("default"), session.bind("default").stream()):
            found = joined(stream, columns, [1, 5, 50, steps - 56], device)
            assert found.shape == (steps, HORIZON, 3) and found.dtype == np.float64
            names = ["forecast_q0.1", "forecast_q0.5", "forecast_q0.9"]
            np.testing.assert_allclose(found[-1], rows[names].to_numpy(), rtol=1e-4)
            for end in (LOOKBACK, LOOKBACK + 1, steps - 3):
                until = {name: value[: end + (HORIZON if name in KNOWN else 0)] for name, value in columns.items()}
                np.testing.assert_allclose(found[end - 1], session.forecast(until, "default", device=device), rtol=1e-5)


def test_streams_at_once(made: tuple[Forecaster, Session]) -> None:
    _, session = made
    one = columns_of(frame(), "pump0")
    steps, two = len(one["y"]), {name: np.stack([value, 2 * value]) for name, value in one.items()}
    found = joined(session.stream("default"), two, [3, steps - 3], "pump0")
    assert found.shape == (2, steps, HORIZON, 3)
    np.testing.assert_allclose(found[0], joined(session.stream("default"), one, [steps], "pump0"), rtol=1e-5)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda v: v.pop("load"), "the values must have the columns y, load, hour_sin, hour_cos, got"),
        (lambda v: v.update(load=v["load"][:-1]), "load: shape"),
        (lambda v: v["y"].__setitem__(0, np.nan), "y: .*all of it finite"),
    ],
)
def test_values_that_do_not_fit_are_told(made: tuple[Forecaster, Session], change: Any, message: str) -> None:
    values = {name: value.copy() for name, value in chunks(columns_of(frame(), "pump0"), [9])[0].items()}
    change(values)
    with pytest.raises(ValueError, match=message):
        made[1].stream("default").forecast(values, device="pump0")


def test_a_scaler_by_window_is_refused_on_the_device_and_for_an_adapter(
    made: tuple[Forecaster, Session], tmp_path: Path
) -> None:
    wanted, _ = made
    by_window = forecast_settings({**wanted.settings(), "scaler": WindowScaler().to_dict()})
    with pytest.raises(ValueError, match="a stream has none; take session.forecast"):
        forecast_steps(by_window, np.zeros(3), None, lambda z: z)
    with pytest.raises(ValueError, match="scales each window by itself"):
        export(wanted, tmp_path / "b", streaming=True, tasks={"default": by_window})


def test_the_calendar_is_that_of_the_steps_that_are_forecast() -> None:
    spoken = replace(settings(Standard(unscaled=KNOWN).fit(measured())), step_s=3600.0, time_zone="UTC")
    table = frame()[lambda t: t["unique_id"] == "pump1"]
    (whole,) = chunks(columns_of(table, "pump1"), [len(table) - HORIZON])
    seen: list[np.ndarray] = []

    def push(z: np.ndarray) -> np.ndarray:
        seen.append(z)
        return np.zeros((1, HORIZON, z.shape[2]), np.float32)

    forecast_steps(spoken, whole, "pump1", push)
    ends = table["ds"].iloc[-1 - HORIZON].isoformat()
    bare = {name: value for name, value in whole.items() if name not in KNOWN}
    forecast_steps(spoken, bare, "pump1", push, ends=ends)
    np.testing.assert_allclose(seen[1], seen[0], atol=1e-6)


@pytest.mark.slow
def test_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pumps_streamed.py").write_text(NETWORK, encoding="utf-8")
    rows = fleet()[lambda t: t["unique_id"] == "pump0"]
    model = adapted(tiny_net(seed=4))
    randomise(model)
    forecaster(model, scaler=Standard().fit(rows)).save("devices/pump0")
    words = "export devices/pump0 --network pumps_streamed:network --out site --streaming --form fact".split()
    with pytest.raises(SystemExit) as end:
        cli.run_app(cli.app, words)
    assert end.value.code == 0
    session = Session("site", threads=1)
    session.load("pump0")
    stream, y = session.stream("pump0"), rows["y"].to_numpy()
    found = np.concatenate([stream.forecast(y[:100]), stream.forecast(y[100:])])
    np.testing.assert_allclose(found[-1], session.forecast(y, "pump0"), rtol=1e-5)
