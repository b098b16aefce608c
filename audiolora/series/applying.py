"""Forecasts with a finished run: each device by what was best on its own validation days."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Literal

import pandas as pd

from audiolora.run import Run, read_run
from audiolora.series.bases import load_base
from audiolora.series.calendar import with_calendar, with_horizon
from audiolora.series.device_results import device_folder, read_device
from audiolora.series.fleet_applying import forecast_with_fleet
from audiolora.series.forecaster import Forecaster
from audiolora.series.nets import base_network

Others = Literal["base", "shared"]


def forecast_with_run(run: str | os.PathLike[str], frame: pd.DataFrame, *, others: Others = "base") -> pd.DataFrame:
    """The forecast behind each device's last measured y.

    Args:
        run: a finished run's folder, such as runs/demo-series.
        frame: long form, in the unit and at the step of the run's devices.
        others: what forecasts devices that the run does not know: its base, or the adapter that its devices share.

    Returns:
        DataFrame ``unique_id``, ``ds``, ``cutoff``, ``forecast`` and ``model`` (own, shared or base). A device whose
        last lookback has a gap has no rows.

    Raises:
        ValueError: no finished run of forecasters, or one whose devices share no adapter.

    Example:
        >>> forecast_with_run("runs/demo-series", frame)  # doctest: +SKIP
    """
    found = read_run(Path(run))
    base = base_of_run(found)
    if "chunk" in found.settings:
        return forecast_with_fleet(found, base, frame)
    rows = with_horizon(frame[["unique_id", "ds", "y"]], base.horizon, freq=base.freq)
    rows = with_calendar(rows, time_zone=found.settings["time_zone"])
    tables = []
    for unique_id, own in rows.groupby("unique_id", sort=False, observed=True):
        forecaster, model = device_forecaster(found, base, str(unique_id), others)
        tables.append(forecaster.predict(own).assign(model=model))
    return pd.concat(tables, ignore_index=True)


def base_of_run(run: Run) -> Forecaster:
    """A run's base, at the step of the run's devices.

    Raises:
        ValueError: the run is not finished, or not one of forecasters.
    """
    if "horizon" not in run.settings:
        raise ValueError(f"{run.folder} is no run of forecasters; name one of recipes/sensor_forecast.py")
    if not run.finished:
        raise ValueError(f"{run.folder} is not finished; run its command again, it continues")
    if "chunk" in run.settings:  # of recipes/sensor_fleet.py
        return load_base(run.folder)
    base = Forecaster.load(base_network(run.settings), run.folder / "base")
    return base.over(base.net, freq=run.read("split.json")["freq"])


def device_forecaster(run: Run, base: Forecaster, unique_id: str, others: Others = "base") -> tuple[Forecaster, str]:
    """What a device goes on with, and whether that is its own adapter, the shared one or the base.

    Raises:
        ValueError: the device is to use a shared adapter and the run has none.
    """
    folder = device_folder(run.folder, unique_id)
    result = read_device(folder)
    uses = others if result is None else result.methods[run.settings["method"]]["uses"]
    if uses == "base":
        return base, uses
    path = folder / "adapter" if uses == "own" else run.folder / "shared"
    if not path.is_dir():
        raise ValueError(f"{unique_id}: {run.folder} has no adapter that its devices share; take others='base'")
    return Forecaster.load(copy.deepcopy(base.net), path), uses
