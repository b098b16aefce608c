"""The sensor recipe from end to end on a generated fleet, and what the run is good for afterwards."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from cyclopts import App

from audiolora import cli
from audiolora.edge import Session
from audiolora.run import read_run
from audiolora.series.applying import forecast_with_run
from audiolora.series.calendar import CALENDAR, with_calendar, with_horizon
from audiolora.series.device_results import device_folder, read_device
from audiolora.series.forecaster import Forecaster
from audiolora.series.frames import read
from audiolora.series.metrics import score
from audiolora.series.nets import base_network
from audiolora.series.problems import SeriesError
from audiolora.series.settings import AdaptSettings, BaseSettings, FileSettings
from tests.series.tiny_fleet import fleet
from tests.test_report import Page

RECIPE = Path(__file__).parents[2] / "recipes" / "sensor_forecast.py"
BASE = BaseSettings(lookback=48, horizon=6, channels=4, base_epochs=1)
ADAPT = AdaptSettings(epochs=1, own_epochs=1, val_days=3, stride=6)
ARGUMENTS: dict[str, Any] = {"unseen": 2, "history_days": 10, "test_days": 4, "name": "tiny", "compare": ("head",)}
OPTIONS = "--lookback 48 --horizon 6 --channels 4 --base-epochs 1 --epochs 1 --own-epochs 1 --val-days 3 --stride 6"
OPTIONS += " --unseen 2 --history-days 10 --test-days 4 --name tiny --compare head"
ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(RECIPE.parents[1])}


@pytest.fixture(scope="module")
def recipe() -> Callable[..., None]:
    spec = importlib.util.spec_from_file_location("sensor_forecast", RECIPE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("fleet") / "pumps.csv"
    fleet(devices=4, steps=24 * 45).to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def run(recipe, data, tmp_path_factory) -> Path:
    """A finished run; not to be changed."""
    out = tmp_path_factory.mktemp("runs")
    recipe(data=str(data), base=BASE, adapt=ADAPT, out=out, **ARGUMENTS)
    return out / "tiny"


def summary(run: Path) -> dict[str, Any]:
    return json.loads((run / "summary.json").read_text())


def test_the_run_leaves_figures_that_are_those_of_its_forecasts(run, data):
    rows = {row["model"]: row for row in summary(run)["rows"]}
    assert [*rows] == ["frozen", "seasonal_naive", "ridge", "head", "shared lora+head+bias", "lora+head+bias"]
    split = json.loads((run / "split.json").read_text())
    assert len(split["unseen"]) == 2 and not set(split["unseen"]) & set(split["learned"])
    results = [read_device(device_folder(run, name)) for name in split["unseen"]]
    forecasts = pd.concat([result.forecasts for result in results])
    assert forecasts["cutoff"].min() == pd.Timestamp(split["adapted_at"])
    assert forecasts["ds"].max() <= pd.Timestamp(split["scored_until"])
    history = pd.read_csv(data, parse_dates=["ds"])
    history = history[history["ds"] > pd.Timestamp(split["history_after"])]
    by_device = score(forecasts, history, seasonality=24).groupby("model")["mase"].mean()
    for name, row in rows.items():
        assert row["mase"] == pytest.approx(by_device[name], rel=1e-6)
        assert row["low"] <= row["mase"] <= row["high"]
    assert all(sum(rows[name][f"uses_{what}"] for what in ("own", "shared", "base")) == 2 for name in ("head",))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == BASE.base_epochs + 2 * 2


def test_a_device_goes_on_with_what_was_best_on_its_validation_days(run):
    for name in json.loads((run / "split.json").read_text())["unseen"]:
        result = read_device(device_folder(run, name))
        for method, facts in result.methods.items():
            assert facts["losses"][facts["uses"]] == min(facts["losses"].values())
            source = {"own": method, "shared": f"shared {method}", "base": "frozen"}[facts["uses"]]
            assert result.with_fallback()[method].equals(result.forecasts[source])


def test_the_report_stands_alone_and_shows_every_model_and_device(run):
    page = Page((run / "report.html").read_text(encoding="utf-8"))
    for row in summary(run)["rows"]:
        assert row["model"] in page.text and f"{row['mase']:.3f}" in page.text
    for name, *_ in summary(run)["devices"]:
        assert name in page.text
    assert "with fallback" in page.text.lower()
    assert not page.all("script") and not page.all("link")[1:]
    assert {svg["role"] for svg in page.all("svg")} == {"img"} and len(page.all("svg")) == 4


def test_a_finished_run_is_shown_again_and_another_setting_refused(recipe, run, data, capsys):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    recipe(data=str(data), base=BASE, adapt=ADAPT, out=run.parent, **ARGUMENTS)
    assert "lora+head+bias" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    with pytest.raises(ValueError, match="history_days was 10, now 12"):
        recipe(data=str(data), base=BASE, adapt=ADAPT, out=run.parent, **{**ARGUMENTS, "history_days": 12})


def said(capsys, *words: object, app: App = cli.app) -> tuple[int, str, str]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        cli.run_app(app, [str(word) for word in words])
    return (end.value.code, *capsys.readouterr())


def test_the_command_forecasts_as_the_saved_forecaster_does(run, data, capsys, tmp_path):
    status, _, warned = said(capsys, "forecast", run, data, "--out", tmp_path / "next.csv")
    assert status == 0 and "forecast by its base: " in warned
    found = pd.read_csv(tmp_path / "next.csv", parse_dates=["ds", "cutoff"])
    split, found_run = json.loads((run / "split.json").read_text()), read_run(run)
    rows = with_calendar(with_horizon(read(data), 6, freq="h"))
    net = base_network(found_run.settings)
    base = Forecaster.load(net, run / "base", known=list(CALENDAR))
    for name, own in rows.groupby("unique_id"):
        result = read_device(device_folder(run, name))
        uses = "base" if result is None else result.methods["lora+head+bias"]["uses"]
        again = base_network(found_run.settings)
        again.load_state_dict(net.state_dict())
        folder = {"own": device_folder(run, name) / "adapter", "shared": run / "shared"}.get(uses)
        forecaster = base if folder is None else Forecaster.load(again, folder)
        mine = found[found["unique_id"] == name]
        assert set(mine["model"]) == {uses} and (name in split["unseen"]) == (result is not None)
        np.testing.assert_allclose(mine["forecast"], forecaster.predict(own)["forecast"], rtol=1e-6)
    shared = forecast_with_run(run, read(data), others="shared")
    assert set(shared["model"]) >= {"shared"}


def test_a_bundle_of_the_run_forecasts_as_the_command_does(run, data, capsys, tmp_path):
    status, _, _ = said(capsys, "forecast", run, data, "--out", tmp_path / "next.csv")
    found = pd.read_csv(tmp_path / "next.csv", parse_dates=["ds", "cutoff"])
    status, _, err = said(capsys, "export", run, "--out", tmp_path / "b")
    assert status == 0, err
    session = Session(tmp_path / "b", threads=1)
    frame = read(data)
    for name, wanted in found.groupby("unique_id"):
        own = frame[frame["unique_id"] == name]
        adapter = None if set(wanted["model"]) == {"base"} else name
        assert (adapter is not None) == (name in session.available())
        if adapter is not None:
            session.load(adapter)
        y = session.forecast(own["y"].to_numpy(), adapter, ends=str(wanted["cutoff"].iloc[0]))
        np.testing.assert_allclose(y, wanted["forecast"], rtol=1e-4)
    status, _, err = said(capsys, "export", run, "--out", tmp_path / "c", "--network", "a:b")
    assert status == 2 and "has its base with it" in err
    status, _, err = said(capsys, "export", tmp_path, "--out", tmp_path / "c")
    assert status == 2 and "holds no adapter" in err


def test_the_command_names_devices_that_it_cannot_forecast(run, data, capsys, tmp_path):
    frame = pd.read_csv(data)
    frame.drop(frame.index[-10]).to_csv(tmp_path / "gap.csv", index=False)
    status, out, err = said(capsys, "forecast", run, tmp_path / "gap.csv")
    assert (status, out) == (2, "") and "pump3: a gap in its last 48 steps" in err
    status, out, err = said(capsys, "forecast", run, tmp_path / "gap.csv", "--skip-bad", "--format", "json")
    assert status == 3 and {row["unique_id"] for row in json.loads(out)} == {"pump0", "pump1", "pump2"}
    status, _, err = said(capsys, "forecast", tmp_path, data)
    assert status == 2 and "holds no run" in err


def test_bad_devices_stop_the_run_or_are_dropped_where_asked(recipe, tmp_path):
    frame = fleet(devices=4, steps=24 * 45)
    frame.loc[frame["unique_id"] == "pump2", "y"] = 5.0
    frame.to_csv(tmp_path / "pumps.csv", index=False)
    asked = {"data": str(tmp_path / "pumps.csv"), "base": BASE, "adapt": ADAPT, "out": tmp_path / "runs", **ARGUMENTS}
    with pytest.raises(SeriesError, match="pump2, y: constant"):
        recipe(**asked)
    assert not (tmp_path / "runs" / "tiny" / "split.json").exists()
    with pytest.raises(ValueError, match="unseen must leave a device to learn from: 1 to 2 of 3, got 3"):
        recipe(**{**asked, "unseen": 3, "file": FileSettings(drop_bad=True)})


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_figures(run, data, tmp_path):
    command = [sys.executable, str(RECIPE), "--data", str(data), *OPTIONS.split(), "--out", str(tmp_path)]
    process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    folder = tmp_path / "tiny"
    while process.poll() is None and not list((folder / "devices").glob("*/device.json")):
        time.sleep(0.01)
    assert process.poll() is None, "the run ended before it could be killed"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (folder / "summary.json").exists()
    done = {path: path.stat().st_mtime_ns for path in (folder / "devices").glob("*/device.json")}
    subprocess.run(command, env=ENVIRONMENT, check=True, capture_output=True)
    assert all(path.stat().st_mtime_ns == at for path, at in done.items())
    assert summary(folder)["rows"] == summary(run)["rows"]


def test_inspect_shows_a_run_of_forecasters(run, capsys):
    status, out, _ = said(capsys, "inspect", run)
    assert status == 0 and "finished" in out and "seasonal_naive" in out and "shared lora+head+bias" in out
