"""Fleets to try things on, out of packages on PyPI: downloaded, checked by hash and unpacked, never installed.

What each package states about the licence of its data is quoted word for word; where it states none of the data, that
is said.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from audiolora.packages import FetchError, Log, fetch_pypi, read_member
from audiolora.series.frames import read
from audiolora.series.steps import fixed_ns, freq_name, infer_freq, parse_freq

_DAY_NS = 24 * 3600 * 10**9


@dataclass(frozen=True)
class SensorFleet:
    """A fleet's histories and where they come from.

    Attributes:
        name: as `fetch_fleet` knows it.
        frame: long form; columns beside unique_id, ds and y are covariates measured with y, their unit in the name.
        freq: the step.
        seasonality: steps of a day.
        what: what y is, in which unit, and what was done to the published stamps.
        licence: what the package states, quoted.
        source: the release and the folder or file in it.
    """

    name: str
    frame: pd.DataFrame
    freq: str
    seasonality: int
    what: str
    licence: str
    source: str


@dataclass(frozen=True)
class _Packaged:
    requirement: str
    sha256: str
    sdist: bool
    member: str
    freq: str
    seasonality: int
    what: str
    licence: str
    frame: Callable[[Path, str], pd.DataFrame]


def fetch_fleet(name: str = "citylearn", *, log: Log = print) -> SensorFleet:
    """Download a fleet, once, and read it.

    Args:
        name: `"citylearn"`: 17 homes behind PV, hourly, one year (23 MB);
            `"simbench"`: 96 load and 42 generation profiles of a benchmark grid, 15 min, one year (91 MB);
            `"turbines"`: 4 wind turbines, 10 min, two years (76 MB);
            `"meters"`: 6 sample meters of electricity and gas, hourly, two to three years (2 MB).
        log: called with one line of text for each thing done.

    Returns: the fleet; `frame` goes to `checks.check` like anybody's.

    Raises:
        ValueError: no such fleet.
        FetchError: the package cannot be downloaded, or is not the one that was looked into.

    Example:
        >>> fetch_fleet("citylearn").frame["unique_id"].nunique()  # doctest: +SKIP
        17
    """
    if name not in FLEETS:
        raise ValueError(f"there is no fleet {name!r}; there are {', '.join(FLEETS)}, and frames.read for your own")
    package = FLEETS[name]
    try:
        archive = fetch_pypi(package.requirement, sha256=package.sha256, sdist=package.sdist, log=log)
    except FetchError as error:
        raise FetchError(
            f"fleet {name!r}: {error}\nWithout a package index, read a table of your own: frames.read"
        ) from None
    frame = package.frame(archive, package.member)
    log(f"{name}: {frame['unique_id'].nunique()} devices, {len(frame)} rows, every {package.freq}; {package.licence}")
    source = f"{package.requirement}, {package.member}"
    return SensorFleet(name, frame, package.freq, package.seasonality, package.what, package.licence, source)


def open_fleet(
    data: str,
    *,
    freq: Any = None,
    seasonality: int | None = None,
    columns: Mapping[str, Any] | None = None,
    log: Log = print,
) -> SensorFleet:
    """A fleet by its name, or from a file of the user's own; nothing is checked yet but the columns.

    Args:
        data: a name that `fetch_fleet` knows, or a CSV or Parquet file, long or wide.
        freq: the step; by default the fleet's, or the most frequent one in the file.
        seasonality: steps a season has; by default those of a day.
        columns: ``id_col``, ``time_col``, ``target_col`` of a file, as in `frames.read`.
        log: as in `fetch_fleet`.

    Returns:
        The fleet; rows of a file that cannot be read are left for `checks.check` to report.

    Raises:
        ValueError: neither a name nor a file, or a step for which a day is no season.
    """
    if data in FLEETS:
        fleet = fetch_fleet(data, log=log)
        return replace(fleet, freq=freq or fleet.freq, seasonality=seasonality or fleet.seasonality)
    path = Path(data).expanduser()
    if not path.is_file():
        raise ValueError(f"--data {data}: no such file, and no fleet to fetch; those are {', '.join(FLEETS)}")
    frame = read(path, errors="report", **(columns or {}))
    stamps = [rows["ds"].dropna().to_numpy("datetime64[ns]") for _, rows in frame.groupby("unique_id")]
    step = freq_name(freq) if freq is not None else infer_freq(stamps)
    if step is None:
        raise ValueError(f"{data}: too few stamps to tell the step from; name it: freq='h'")
    if seasonality is None:
        width = fixed_ns(parse_freq(step))
        if width is None or _DAY_NS % width or width == _DAY_NS:
            raise ValueError(f"{data}: a day is no season of steps of {step}; name the steps of one: seasonality=7")
        seasonality = _DAY_NS // width
    nothing = "your own; audiolora knows nothing of its licence"
    return SensorFleet(path.stem, frame, step, seasonality, "what the file measures", nothing, str(data))


_CITYLEARN_COLUMNS = {
    "Outdoor Drybulb Temperature [C]": "temperature_c",
    "Relative Humidity [%]": "humidity_percent",
    "Diffuse Solar Radiation [W/m2]": "diffuse_w_m2",
    "Direct Solar Radiation [W/m2]": "direct_w_m2",
}
# The one hour in the years around the data at which the tables' months, hours and weekdays all agree with the calendar.
_CITYLEARN_START = "2016-07-31 23:00"


def _citylearn(archive: Path, member: str) -> pd.DataFrame:
    buildings = json.loads(read_member(archive, f"{member}/schema.json"))["buildings"]
    weather = _csv(archive, f"{member}/weather.csv")[[*_CITYLEARN_COLUMNS]].rename(columns=_CITYLEARN_COLUMNS)
    homes = []
    for name, building in buildings.items():
        table = _csv(archive, f"{member}/{building['energy_simulation']}")
        ds = pd.date_range(_CITYLEARN_START, periods=len(table), freq="h")
        _same_clock(name, table, ds)
        load = table["Equipment Electric Power [kWh]"]
        # The table has the yield of one kW of panels; the schema, how many the home has.
        pv = table["Solar Generation [W/kW]"] * building["pv"]["attributes"]["nominal_power"] / 1000
        columns = {"unique_id": name, "ds": ds, "y": load - pv, "load_kwh": load, "pv_kwh": pv}
        homes.append(pd.DataFrame(columns).join(weather))
    return read(pd.concat(homes, ignore_index=True))


def _same_clock(name: str, table: pd.DataFrame, ds: pd.DatetimeIndex) -> None:
    written = table[["Month", "Hour", "Day Type"]].to_numpy(np.int64)
    if not np.array_equal(written, np.column_stack([ds.month, ds.hour + 1, ds.day_of_week + 1])):
        raise FetchError(
            f"{name}: months, hours and weekdays do not run on from {ds[0]}; this is another release's table"
        )


def _simbench(archive: Path, member: str) -> pd.DataFrame:
    parts = []
    for file, suffix in (("LoadProfile.csv", "_pload"), ("RESProfile.csv", "")):
        table = _csv(archive, f"{member}/{file}", sep=";")
        # German local time; the hour that the clocks repeat in autumn is told apart by the order of the rows.
        local = pd.DatetimeIndex(pd.to_datetime(table.pop("time"), format="%d.%m.%Y %H:%M"))
        ds = local.tz_localize("Europe/Berlin", ambiguous="infer").tz_convert("UTC").tz_localize(None)
        kind = "load" if suffix else "generation"
        profiles = {name: name.removesuffix(suffix) for name in table.columns if name.endswith(suffix)}
        wide = table[[*profiles]].rename(columns=lambda name, p=profiles, k=kind: f"{k}/{p[name]}").assign(ds=ds)
        parts.append(read(wide, layout="wide"))
    return pd.concat(parts, ignore_index=True).sort_values(["unique_id", "ds"], kind="stable", ignore_index=True)


_TURBINE_COLUMNS = {
    "Ws_avg": "wind_speed_m_s",
    "Wa_avg": "wind_direction_deg",
    "Va_avg": "vane_deg",
    "Ya_avg": "nacelle_deg",
    "Ba_avg": "pitch_deg",
    "Ot_avg": "temperature_c",
}


def _turbines(archive: Path, member: str) -> pd.DataFrame:
    with zipfile.ZipFile(io.BytesIO(read_member(archive, member))) as inner:
        name = next(name for name in inner.namelist() if name.endswith("data-2014-2015.csv"))
        table = pd.read_csv(io.BytesIO(inner.read(name)))
    table = table.rename(columns=_TURBINE_COLUMNS)
    frame = read(table, id_col="Wind_turbine_name", time_col="Date_time", target_col="P_avg")
    frame.attrs.clear()  # the source is not in order, and has two offsets a year; neither is the user's to mend
    # In the first hour of summer time the source gives two measurements one stamp: which is which, it does not say.
    return frame[~frame.duplicated(["unique_id", "ds"], keep=False)].reset_index(drop=True)


def _meters(archive: Path, member: str) -> pd.DataFrame:
    parts = []
    for meter, weather in _METERS.items():
        table = _csv(archive, f"{member}/{meter}.csv.gz", compression="gzip")
        temperature = _csv(archive, f"{member}/{weather}.csv.gz", compression="gzip")
        fahrenheit = "tempF" in temperature.columns
        celsius = (temperature["tempF"] - 32) / 1.8 if fahrenheit else temperature["tempC"]
        air = pd.DataFrame({"ds": pd.to_datetime(temperature["dt"], utc=True), "temperature_c": celsius})
        rows = table.assign(ds=pd.to_datetime(table["start"], utc=True)).merge(air, on="ds", how="left")
        parts.append(rows.assign(unique_id=meter, y=rows["value"])[["unique_id", "ds", "y", "temperature_c"]])
    return read(pd.concat(parts, ignore_index=True))


_METERS = {
    "il-electricity-cdd-hdd-hourly": "il-tempF",
    "il-electricity-cdd-only-hourly": "il-tempF",
    "il-gas-hdd-only-hourly": "il-tempF",
    "il-gas-intercept-only-hourly": "il-tempF",
    "uk-electricity-hdd-only-hourly-sample-0": "uk-tempC-sample-0",
    "uk-gas-hdd-only-hourly-sample-0": "uk-tempC-sample-0",
}


def _csv(archive: Path, member: str, **settings: Any) -> pd.DataFrame:
    return pd.read_csv(io.BytesIO(read_member(archive, f"/{member}")), **settings)


FLEETS: dict[str, _Packaged] = {
    "citylearn": _Packaged(
        requirement="CityLearn==2.1.2",
        sha256="95730b1deed73b1f5a4d17eb8334be3c99efa4aef8677822378d62d8359511dd",
        sdist=False,
        member="data/citylearn_challenge_2022_phase_all",
        freq="h",
        seasonality=24,
        what="net load in kWh an hour: the home's load less its PV. The tables hold month, hour and weekday, and no "
        f"year; stamps run from {_CITYLEARN_START}, with which all of them agree, and are the tables' own clock, "
        "which knows no summer time",
        licence="the wheel holds an MIT licence ('Copyright (c) 2020 Jose Ramon Vazquez-Canteli, Intelligent "
        "Environments Laboratory') and the classifier 'License :: OSI Approved :: MIT License'; it states nothing "
        "about the data apart",
        frame=_citylearn,
    ),
    "simbench": _Packaged(
        requirement="simbench==1.6.3",
        sha256="8b48bdab2445286a96649eb18bb09476d000a0e212fd57fdba83399df54af4de",
        sdist=False,
        member="networks/1-complete_data-mixed-all-0-sw",
        freq="15min",
        seasonality=96,
        what="active power as a share of each profile's peak, loads and generators; a benchmark's profiles, from "
        "German local time to UTC",
        licence="'The database called SimBench is made available under the Open Database License: "
        "http://opendatacommons.org/licenses/odbl/1.0/. Any rights in individual contents of the database are "
        "licensed under the Database Contents License: http://opendatacommons.org/licenses/dbcl/1.0/'",
        frame=_simbench,
    ),
    "turbines": _Packaged(
        requirement="openoa==3.2",
        sha256="85d19e567b47a2b0a1c34556ba69b7df1f6d523e1017f954f733fb05339783cf",
        sdist=True,
        member="examples/data/la_haute_borne.zip",
        freq="10min",
        seasonality=144,
        what="active power in kW, averages over 10 min. Two measurements share a stamp in the first hour of summer "
        "time; both are left out, and an hour is missing in autumn, so summer's stamps may be off by one hour",
        licence='\'The example data provided in la_haute_borne.zip are based on data for the "La Haute Borne" wind '
        "farm published by ENGIE under the Open License version 2.0'",
        frame=_turbines,
    ),
    "meters": _Packaged(
        requirement="opendsm==1.2.7",
        sha256="3c4637bdefb2b40b4d1ec6ae6308c42b03e491769e93cb5ee397ef2b86856780",
        sdist=False,
        member="eemeter/samples",
        freq="h",
        seasonality=24,
        what="electricity in kWh, gas in therms (il-) or kWh (uk-), an hour. The package says of its samples that "
        "they 'are simulated, not real, data'. Two more are called hourly and are half-hourly, with stamps twice: left "
        "out",
        licence="'License: Apache-2.0', of the package; it states nothing about the samples apart",
        frame=_meters,
    ),
}
"""By name: releases that were looked into, by their hash."""
