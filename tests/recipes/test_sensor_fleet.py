"""The fleet recipe from a file to its report: every kind of bad device, a kill, files, and one adapter taken out."""

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
from safetensors.torch import load_file

from audiolora.series.bases import load_base
from audiolora.series.fleet_settings import FleetData, FleetSettings, PretrainSettings
from audiolora.series.forecaster import Forecaster
from tests.series.tiny_fleet import fleet

RECIPE = Path(__file__).parents[2] / "recipes" / "sensor_fleet.py"
PARTS = FleetData(lookback=48, horizon=12, history="8D", val="4D", test="3D", freq="h")
TRAINING = FleetSettings(epochs=3, lr=1e-2, batch_size=16, stride=6, chunk=3)
PRETRAIN = PretrainSettings(pretrain_share=0.4, pretrain_epochs=1, pretrain_stride=12, width=4)
OPTIONS = (
    "--lookback 48 --horizon 12 --history 8D --val 4D --test 3D --freq h --epochs 3 --lr 0.01 --batch-size 16 "
    "--stride 6 --chunk 3 --pretrain-share 0.4 --pretrain-epochs 1 --pretrain-stride 12 --width 4"
).split()
ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(RECIPE.parents[1])}

# What each bad device has: its column and problem, as the report names them.
BAD = {
    "duplicate": ("ds", "duplicate"),
    "mixed": ("ds", "mixed_zones"),
    "constant": ("y", "constant"),
    "all missing": ("y", "too_short"),
    "infinite": ("y", "inf"),
    "short": ("y", "too_short"),
    "seen twice": ("ds", "duplicate"),
    "units": ("y", "unit_jump"),
    "no number": ("y", "not_a_number"),
    "ended": ("y", "too_short"),
}
# Named too, and trained: windows do not cross what is missing, and read() sorts.
NOTED = {"gap": ("ds", "gap"), "holes": ("y", "nan"), "unsorted": ("ds", "unsorted")}


def bad_fleet() -> pd.DataFrame:
    """Three sound pumps, a device of each kind of trouble, and one whose clock jumps to 2099; y and ds as text."""
    names = [*BAD, *NOTED, "clock"]
    many = fleet(3 + len(names), steps=24 * 30)
    several = dict(tuple(many.groupby("unique_id", sort=False)))
    parts = [several[f"pump{i}"] for i in range(3)]
    for i, name in enumerate(names):
        rows = several[f"pump{3 + i}"].assign(unique_id=name).reset_index(drop=True)
        parts.append(spoilt(name, rows))
    frame = pd.concat(parts, ignore_index=True)
    stamps = frame["ds"].dt.strftime("%Y-%m-%dT%H:%M:%S") + "Z"
    frame["ds"] = stamps.where((frame["unique_id"] != "mixed") | (frame.index % 2 == 0), stamps.str.rstrip("Z"))
    frame["y"] = frame["y"].astype(object).where(frame["y"].notna(), "")
    first = frame.index[frame["unique_id"] == "no number"][5]
    frame.loc[first, "y"] = "n/a?"
    return frame


def spoilt(name: str, rows: pd.DataFrame) -> pd.DataFrame:
    y, place = rows["y"], np.arange(len(rows))
    if name == "duplicate":
        return pd.concat([rows, rows.tail(3)])
    if name == "seen twice":
        return pd.concat([rows, rows.assign(y=y[::-1].to_numpy())])
    if name == "short":
        return rows.tail(20)
    if name == "ended":
        return rows.head(24 * 16)
    if name == "gap":
        return rows.drop(rows.index[100:110])
    if name == "unsorted":
        return rows.iloc[::-1]
    if name == "clock":
        return rows.assign(ds=rows["ds"].mask(place == len(rows) - 1, pd.Timestamp("2099-01-01")))
    changed = {
        "constant": y * 0 + 7,
        "all missing": y.mask(place >= 0),
        "infinite": y.mask(place == 50, np.inf),
        "units": y.mask(place >= 300, y * 1000),
        "holes": y.mask(place % 97 == 0),
    }
    return rows.assign(y=changed.get(name, y))


@pytest.fixture(scope="module")
def recipe() -> Callable[..., None]:
    spec = importlib.util.spec_from_file_location("sensor_fleet", RECIPE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


@pytest.fixture(scope="module")
def call(recipe) -> Callable[..., Path]:
    def run(out: Path, data: Path, **changes: Any) -> Path:
        given = {"parts": PARTS, "training": TRAINING, "pretrain": PRETRAIN, "name": "tiny", "ridge": False, **changes}
        recipe(data=str(data), out=out, **given)
        return out / given["name"]

    return run


@pytest.fixture(scope="module")
def with_bad(call, tmp_path_factory) -> tuple[Path, pd.DataFrame]:
    """The run over the bad fleet, and the file's rows."""
    folder, rows = tmp_path_factory.mktemp("bad"), bad_fleet()
    rows.to_csv(folder / "fleet.csv", index=False)
    return call(folder, folder / "fleet.csv"), rows


def test_every_bad_device_is_named_and_the_others_go_on(with_bad, capsys):
    run, _ = with_bad
    devices = pd.read_csv(run / "devices.csv", index_col="unique_id")
    out = devices[devices["outcome"] == "left out"]
    assert set(out.index) == set(BAD)
    page = (run / "report.html").read_text("utf-8")
    for name, (column, problem) in BAD.items():
        assert f"{column}: {problem}" in out.at[name, "why"], out.at[name, "why"]
        assert f'<th scope="row">{name}</th><td>{column}</td><td>{problem}</td>' in page
    for name, (column, problem) in NOTED.items():
        assert f"<td>{name}</td><td>{column}</td><td>{problem}</td>" in page
    trained = {"pump0", "pump1", "pump2", *NOTED, "clock"}
    assert set(devices.index) - set(BAD) == trained
    assert devices.loc[sorted(trained), "steps"].min() > 0


def test_the_terminal_names_them_too(with_bad, call, capsys):
    run, _ = with_bad
    call(run.parent, run.parent / "fleet.csv")  # finished: it is shown again
    printed = capsys.readouterr().out
    assert f"left out ({len(BAD)})" in printed
    for name, (column, problem) in BAD.items():
        assert any(line.startswith(f"  {name}: ") and f"{column}: {problem}" in line for line in printed.splitlines())


def test_the_good_devices_get_the_adapters_they_get_without_the_bad(with_bad, call, tmp_path):
    run, rows = with_bad
    rows[~rows["unique_id"].isin(BAD)].to_csv(tmp_path / "good.csv", index=False)
    alone = call(tmp_path, tmp_path / "good.csv")
    for folder, file in (("base", "network.safetensors"), ("adapters", "fleet.safetensors")):
        found, wanted = load_file(run / folder / file), load_file(alone / folder / file)
        assert found.keys() == wanted.keys()
        assert all(found[key].equal(wanted[key]) for key in wanted)
    assert (run / "adapters" / "fleet.json").read_text() == (alone / "adapters" / "fleet.json").read_text()
    assert (run / "metrics.jsonl").read_text() == (alone / "metrics.jsonl").read_text()


def test_the_table_is_what_the_saved_files_forecast(with_bad, call):
    run, rows = with_bad
    summary = json.loads((run / "summary.json").read_text())
    one = next(
        d for d in summary["devices"] if d["outcome"] in ("gained", "lost") and d["unique_id"].startswith("pump")
    )
    name = one["unique_id"]
    call(run.parent, run.parent / "fleet.csv", export=(name,))
    exported = Forecaster.load(load_base(run).net, run / "devices" / name)
    from audiolora.series.calendar import with_calendar

    long = rows[rows["unique_id"] == name].assign(
        ds=lambda r: pd.to_datetime(r["ds"]).dt.tz_localize(None).astype("datetime64[ns]"),
        y=lambda r: r["y"].astype(float),
    )
    times = {key: pd.Timestamp(value) for key, value in summary["times"].items()}
    table = exported.backtest(with_calendar(long), origins=6, step=12, start=times["val_until"])
    past = long.loc[long["ds"] > times["history_after"]].set_index("ds")["y"]
    errors = []
    for cutoff, part in table.groupby("cutoff"):
        season = past[past.index <= cutoff].diff(24).abs().mean()
        errors.append((part["y"] - part["adapted"]).abs().mean() / season)
    np.testing.assert_allclose(one["adapted"], np.mean(errors), rtol=1e-4)


def test_the_command_line_forecasts_and_shows_the_run(with_bad, tmp_path, capsys):
    from audiolora import cli

    run, _ = with_bad
    fleet(5, steps=24 * 5).to_csv(tmp_path / "today.csv", index=False)
    assert cli.forecast(run, tmp_path / "today.csv", out=tmp_path / "forecasts.csv") == 0
    found = pd.read_csv(tmp_path / "forecasts.csv")
    kept = set(json.loads((run / "adapters" / "fleet.json").read_text())["ids"])
    assert len(found) == 5 * 12 and found["forecast"].notna().all()
    assert set(found.loc[found["model"] == "own", "unique_id"]) == kept & {f"pump{i}" for i in range(5)}
    cli.inspect(run)
    assert f"left out ({len(BAD)})" in capsys.readouterr().out


def test_a_bundle_of_the_run_forecasts_as_the_command_does(with_bad, tmp_path):
    from audiolora import cli
    from audiolora.edge import Session
    from audiolora.export.runs import export_runs

    run, _ = with_bad
    today = fleet(5, steps=24 * 5)
    today.to_csv(tmp_path / "today.csv", index=False)
    assert cli.forecast(run, tmp_path / "today.csv", out=tmp_path / "next.csv") == 0
    found = pd.read_csv(tmp_path / "next.csv")
    made = export_runs([run], tmp_path / "b")
    session = Session(made.folder, threads=1)
    kept = json.loads((run / "adapters" / "fleet.json").read_text())["ids"]
    assert set(session.available()) == set(kept) and len(kept) > 0
    for name, wanted in found.groupby("unique_id"):
        adapter = name if name in kept else None
        if adapter is not None:
            session.load(adapter)
        own = today[today["unique_id"] == name]
        y = session.forecast(own["y"].to_numpy(), adapter, device=name, ends=str(wanted["cutoff"].iloc[0]))
        np.testing.assert_allclose(y, wanted["forecast"], rtol=1e-4)


def test_what_cannot_be_exported_says_why(with_bad, call):
    run, _ = with_bad
    with pytest.raises(ValueError, match=r"constant: left out: y: constant.*nobody: no such device"):
        call(run.parent, run.parent / "fleet.csv", export=("constant", "nobody"))


def test_a_base_of_another_run_is_used(with_bad, call, tmp_path):
    run, rows = with_bad
    rows[rows["unique_id"].isin(["pump0", "pump1"])].to_csv(tmp_path / "two.csv", index=False)
    other = FleetData(history="8D", val="4D", test="3D")
    again = call(tmp_path, tmp_path / "two.csv", base=run, parts=other)
    assert (again / "base" / "network.safetensors").read_bytes() == (run / "base" / "network.safetensors").read_bytes()
    with pytest.raises(ValueError, match="lookback is 48 there, 24 here"):
        call(tmp_path, tmp_path / "two.csv", base=run, parts=FleetData(lookback=24), name="other")


def test_a_wide_file_with_an_id_twice(call, tmp_path):
    wide = fleet(4, steps=24 * 30).pivot(index="ds", columns="unique_id", values="y").reset_index()
    wide.columns = ["ds", "pump0", "pump1", "pump2", "pump1"]
    wide.to_csv(tmp_path / "wide.csv", index=False)
    devices = pd.read_csv(call(tmp_path, tmp_path / "wide.csv") / "devices.csv", index_col="unique_id")
    assert list(devices.index[devices["outcome"] == "left out"]) == ["pump1"]
    assert "unique_id: duplicate_id: 2 columns are called 'pump1'" in devices.at["pump1", "why"]


def test_help_teaches():
    done = subprocess.run(
        [sys.executable, RECIPE, "--help"], capture_output=True, text=True, env=ENVIRONMENT, check=True
    )
    for word in ("--base", "--engine", "--export", "--history", "--least-gain", "report.html", "left out"):
        assert word in done.stdout


@pytest.mark.slow
def test_a_killed_run_continues_to_the_same_result(tmp_path):
    """Killed three times at growing progress, and continued, against one that ran through."""
    fleet(9, steps=24 * 30).to_csv(tmp_path / "fleet.csv", index=False)
    command = [sys.executable, str(RECIPE), "--data", str(tmp_path / "fleet.csv"), *OPTIONS, "--no-ridge"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": ENVIRONMENT}
    subprocess.run([*command, "--out", str(tmp_path / "whole")], check=True, **quiet)
    killed = tmp_path / "killed" / "fleet"
    for sign in ("training/base", "training/chunk-0000", "training/chunk-0001"):
        running = subprocess.Popen([*command, "--out", str(tmp_path / "killed")], **quiet)
        while running.poll() is None and not (killed / sign).exists():
            time.sleep(0.02)
        running.send_signal(signal.SIGKILL)
        running.wait()
        assert not (killed / "summary.json").exists()
    subprocess.run([*command, "--out", str(tmp_path / "killed")], check=True, **quiet)
    for file in ("base/network.safetensors", "adapters/fleet.safetensors", "metrics.jsonl", "devices.csv"):
        assert (killed / file).read_bytes() == (tmp_path / "whole" / "fleet" / file).read_bytes(), file
