"""Fleets out of archives made on the spot, laid out as the published ones; the real ones are fetched by slow tests."""

import gzip
import io
import json
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from audiolora.packages import FetchError
from audiolora.series import fleets
from audiolora.series.checks import check
from audiolora.series.fleets import FLEETS, fetch_fleet, open_fleet

HOURS = 72
RNG = np.random.default_rng(0)


def csv(table: pd.DataFrame, sep: str = ",") -> bytes:
    return table.to_csv(index=False, sep=sep).encode()


def citylearn() -> dict[str, bytes]:
    folder = "citylearn/data/citylearn_challenge_2022_phase_all"
    ds = pd.date_range("2016-07-31 23:00", periods=HOURS, freq="h")
    home = pd.DataFrame({"Month": ds.month, "Hour": ds.hour + 1, "Day Type": ds.day_of_week + 1}).astype(float)
    home["Equipment Electric Power [kWh]"], home["Solar Generation [W/kW]"] = RNG.uniform(1, 2, (2, HOURS))
    weather = pd.DataFrame(RNG.uniform(size=(HOURS, 4)), columns=[*fleets._CITYLEARN_COLUMNS])
    buildings = {
        f"Building_{n}": {"energy_simulation": f"Building_{n}.csv", "pv": {"attributes": {"nominal_power": 4.0 + n}}}
        for n in (1, 11)
    }
    tables = {f"{folder}/Building_{n}.csv": csv(home * 1) for n in (1, 11)}
    schema = json.dumps({"buildings": buildings}).encode()
    return {**tables, f"{folder}/weather.csv": csv(weather.assign(other=1)), f"{folder}/schema.json": schema}


def simbench() -> dict[str, bytes]:
    folder = "simbench/networks/1-complete_data-mixed-all-0-sw"
    local = pd.date_range("2016-10-29", periods=200, freq="15min", tz="Europe/Berlin")  # over the end of summer time
    table = pd.DataFrame({"time": local.strftime("%d.%m.%Y %H:%M"), "H0-A_qload": 9.0, "H0-A_pload": np.arange(200.0)})
    res = table[["time"]].assign(PV1=np.arange(200.0) ** 2, **{"H0-A": np.arange(200.0) ** 3})
    return {f"{folder}/LoadProfile.csv": csv(table, ";"), f"{folder}/RESProfile.csv": csv(res, ";")}


def turbines() -> dict[str, bytes]:
    ds = pd.date_range("2014-03-30 00:00", periods=20, freq="10min", tz="UTC").tz_convert("Europe/Paris")
    signals = {name: np.arange(20.0) for name in ("Ba_avg", "P_avg", "Ws_avg", "Va_avg", "Ot_avg", "Ya_avg", "Wa_avg")}
    rows = [{"Wind_turbine_name": name, "Date_time": stamp.isoformat()} for name in ("R1", "R2") for stamp in ds]
    table = pd.concat([pd.DataFrame(rows), pd.concat([pd.DataFrame(signals)] * 2, ignore_index=True)], axis=1)
    table = pd.concat([table, table.iloc[[6, 7]].assign(P_avg=99.0)]).sample(frac=1, random_state=0)
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("la-haute-borne-data-2014-2015.csv", csv(table))
    return {"openoa-3.2/examples/data/la_haute_borne.zip": inner.getvalue()}


def meters() -> dict[str, bytes]:
    ds = pd.date_range("2015-11-22", periods=HOURS, freq="h", tz="America/Chicago")
    files = {}
    for meter, weather in fleets._METERS.items():
        stamps = [stamp.isoformat() for stamp in ds]
        files[meter] = pd.DataFrame({"start": stamps, "value": RNG.uniform(size=HOURS)})
        celsius = weather.startswith("uk")
        dt = ds.tz_convert("UTC").strftime("%Y-%m-%d %H:%M:%S") if celsius else stamps
        files[weather] = pd.DataFrame({"dt": dt, "tempC" if celsius else "tempF": 10.0 if celsius else 50.0})
    return {f"opendsm/eemeter/samples/{name}.csv.gz": gzip.compress(csv(table)) for name, table in files.items()}


MADE = {"citylearn": citylearn, "simbench": simbench, "turbines": turbines, "meters": meters}


@pytest.fixture
def made(tmp_path, monkeypatch):
    """`fetch_pypi` hands out archives made here, in the form that the package would have."""

    def fetch(requirement: str, *, sha256: str, sdist: bool, log) -> Path:
        (name,) = [name for name, package in FLEETS.items() if package.requirement == requirement]
        assert len(sha256) == 64 and sdist == (name == "turbines")
        path = tmp_path / f"{name}{'.tar.gz' if sdist else '.whl'}"
        if sdist:
            with tarfile.open(path, "w:gz") as archive:
                for member, content in MADE[name]().items():
                    info = tarfile.TarInfo(member)
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
        else:
            with zipfile.ZipFile(path, "w") as archive:
                for member, content in MADE[name]().items():
                    archive.writestr(member, content)
        return path

    monkeypatch.setattr(fleets, "fetch_pypi", fetch)
    return monkeypatch


@pytest.mark.parametrize("name", FLEETS)
def test_every_fleet_is_a_long_frame_on_its_step_with_licence_and_source(made, name):
    lines: list[str] = []
    found = fetch_fleet(name, log=lines.append)
    assert found.frame.columns[:3].tolist() == ["unique_id", "ds", "y"]
    findings = check(found.frame, freq=found.freq)
    assert findings.ok and set(findings.table["problem"]) <= {"gap", "constant_covariate"}
    assert found.seasonality * pd.Timedelta(pd.tseries.frequencies.to_offset(found.freq)) == pd.Timedelta("1D")
    assert found.licence in lines[-1] and FLEETS[name].requirement in found.source and found.what


def test_homes_are_load_less_panels_on_the_tables_own_clock(made):
    frame = fetch_fleet("citylearn", log=lambda line: None).frame
    assert frame["ds"].min() == pd.Timestamp("2016-07-31 23:00") and frame["unique_id"].unique().tolist() == [
        "Building_1",
        "Building_11",
    ]
    np.testing.assert_allclose(frame["y"], frame["load_kwh"] - frame["pv_kwh"])
    pv = frame.pivot(index="ds", columns="unique_id", values="pv_kwh")
    np.testing.assert_allclose(
        pv["Building_11"] / pv["Building_1"], 15 / 5
    )  # the panels that the schema says they have
    assert [*frame.columns[3:]] == [
        "load_kwh",
        "pv_kwh",
        "temperature_c",
        "humidity_percent",
        "diffuse_w_m2",
        "direct_w_m2",
    ]


def test_another_clock_in_the_tables_is_refused(made):
    made.setattr(fleets, "_CITYLEARN_START", "2022-07-31 22:00")
    with pytest.raises(FetchError, match=r"Building_1: months, hours and weekdays do not run on"):
        fetch_fleet("citylearn", log=lambda line: None)


def test_profiles_are_utc_over_the_end_of_summer_time_and_loads_and_generators_apart(made):
    frame = fetch_fleet("simbench", log=lambda line: None).frame
    assert frame["unique_id"].unique().tolist() == ["generation/H0-A", "generation/PV1", "load/H0-A"]
    load = frame[frame["unique_id"] == "load/H0-A"]
    assert load["y"].tolist() == [*range(200)] and load["ds"].iloc[0] == pd.Timestamp("2016-10-28 22:00")


def test_turbines_lose_the_stamps_that_stand_for_two_measurements(made):
    frame = fetch_fleet("turbines", log=lambda line: None).frame
    assert frame.groupby("unique_id").size().to_dict() == {"R1": 18, "R2": 20}
    assert 99.0 not in frame["y"].tolist() and not {6.0, 7.0} & {*frame.loc[frame["unique_id"] == "R1", "y"]}
    assert "wind_speed_m_s" in frame.columns and frame["ds"].min() == pd.Timestamp("2014-03-30")


def test_meters_have_the_temperature_beside_them_in_celsius(made):
    frame = fetch_fleet("meters", log=lambda line: None).frame
    assert frame["unique_id"].nunique() == 6
    np.testing.assert_allclose(frame["temperature_c"], 10.0)


def test_unknown_fleets_and_no_index_say_what_else_there_is(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"no fleet 'etth1'; there are citylearn, simbench, turbines, meters"):
        fetch_fleet("etth1")
    monkeypatch.setenv("AUDIOLORA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(FetchError, match=r"fleet 'meters': opendsm==1.2.7(.|\n)*frames.read"):
        fetch_fleet("meters", log=lambda line: None)


# What each real release holds, counted once by hand: devices, rows, and the problems that a check finds in it.
REAL = {
    "citylearn": (17, 17 * 8760, set()),
    "simbench": (138, 138 * 35136, {"same_series"}),
    "turbines": (4, 4 * 105096, {"gap", "nan"}),
    "meters": (6, 4 * 19417 + 2 * 23508, set()),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_the_real_fleet_is_what_it_was_found_to_be(name, tmp_path, monkeypatch):
    monkeypatch.setenv("AUDIOLORA_CACHE", str(tmp_path))
    found = fetch_fleet(name, log=lambda line: None)
    devices, rows, problems = REAL[name]
    assert (found.frame["unique_id"].nunique(), len(found.frame)) == (devices, rows)
    assert {*check(found.frame, freq=found.freq, lookback=7 * found.seasonality).table["problem"]} == problems


def test_a_file_is_a_fleet_with_its_own_step_and_season(tmp_path):
    ds = pd.date_range("2024-01-01", periods=96, freq="15min")
    pd.DataFrame({"pump": "a", "when": ds, "kW": 1.0}).to_csv(tmp_path / "pumps.csv", index=False)
    columns = {"id_col": "pump", "time_col": "when", "target_col": "kW"}
    found = open_fleet(str(tmp_path / "pumps.csv"), columns=columns)
    assert (found.name, found.freq, found.seasonality, len(found.frame)) == ("pumps", "15min", 96, 96)
    assert open_fleet(str(tmp_path / "pumps.csv"), columns=columns, seasonality=4, freq="h").seasonality == 4
    days = pd.date_range("2024-01-01", periods=3)
    pd.DataFrame({"ds": days, "a": 1.0}).to_csv(tmp_path / "daily.csv", index=False)
    with pytest.raises(ValueError, match="a day is no season of steps of D; name the steps of one: seasonality=7"):
        open_fleet(str(tmp_path / "daily.csv"))
    with pytest.raises(ValueError, match="no such file, and no fleet to fetch; those are citylearn"):
        open_fleet("nowhere.csv")
