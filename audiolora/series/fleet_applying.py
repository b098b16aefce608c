"""Forecasts with a finished run of recipes/sensor_fleet.py: each device by its own adapter, the others by the base."""

from __future__ import annotations

import numpy as np
import pandas as pd

from audiolora.run import Run
from audiolora.series.calendar import CALENDAR, with_calendar, with_horizon
from audiolora.series.fleet_forecaster import FleetForecaster
from audiolora.series.forecaster import Forecaster


def forecast_with_fleet(run: Run, base: Forecaster, frame: pd.DataFrame) -> pd.DataFrame:
    """The forecast behind each device's last measured y, all devices in batched passes.

    Args:
        run: finished.
        base: its base.
        frame: long form, with the covariates that the base reads but for the calendar.

    Returns:
        DataFrame ``unique_id``, ``ds``, ``cutoff``, ``forecast`` and ``model`` (own or base).
    """
    rows = with_horizon(frame, base.horizon, freq=base.freq)
    if set(base.known) & set(CALENDAR):
        rows = with_calendar(rows, time_zone=run.settings["time_zone"] or "UTC")
    fleet = FleetForecaster.load(base, run.folder / "adapters")
    found = fleet.predict(rows).rename(columns={fleet.name: "forecast"})
    own = found["unique_id"].isin(fleet.fleet.ids)
    return found[["unique_id", "ds", "cutoff", "forecast"]].assign(model=np.where(own, "own", "base"))
