"""From a finished run of forecasters to a bundle: the base, and an adapter for each device that uses one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from audiolora.export.forecast_settings import ForecastSettings, forecast_settings
from audiolora.run import Run, read_run
from audiolora.series.applying import base_of_run
from audiolora.series.device_results import device_folder, read_device
from audiolora.series.fleet_forecaster import FleetForecaster
from audiolora.series.forecaster import Forecaster
from audiolora.series.steps import fixed_ns, parse_freq


@dataclass(frozen=True)
class ForecastRun:
    """What a run came to.

    Args:
        net: the base's network.
        base: the folder of its forecaster.
        adapters: the bundle's id → a folder in PEFT's format with its forecaster's settings.
        uses: device → the id of the adapter that it goes on with; None for the base.
        time_zone: the devices'.
    """

    net: nn.Module
    base: Path
    adapters: dict[str, Path]
    uses: dict[str, str | None]
    time_zone: str


def is_forecast_run(folder: Path) -> bool:
    """Whether a recipe for sensors has left this folder."""
    return (folder / "settings.json").is_file() and "horizon" in read_run(folder).settings


def read_forecast_run(folder: Path, scratch: Path) -> ForecastRun:
    """Of recipes/sensor_forecast.py or recipes/sensor_fleet.py.

    Args:
        folder: the run's.
        scratch: an empty folder, for adapters that the run keeps in one file.

    Raises:
        ValueError: the run is not finished, its method leaves no adapters, or two devices would have the same id.
    """
    run = read_run(folder)
    base = base_of_run(run)
    # A fleet lays its maps over the network that it is given: a base of its own for it.
    found = _fleet(run, base_of_run(run), scratch) if "chunk" in run.settings else _devices(run)
    ids: dict[str, str] = {}
    for device, path in found.items():
        if path is not None and (clash := ids.setdefault(bundle_id(device), device)) != device:
            raise ValueError(f"{folder}: {clash!r} and {device!r} would have the same id, {bundle_id(device)!r}")
    adapters = {name: path for name, device in ids.items() if (path := found[device]) is not None}
    for name, path in adapters.items():
        if not (path / "adapter_config.json").is_file():
            raise ValueError(
                f"{folder}: method {run.settings.get('method')!r} leaves whole networks and no adapters ({name}); "
                "export adapters: --method lora+head+bias"
            )
    uses = {device: None if path is None else bundle_id(device) for device, path in found.items()}
    return ForecastRun(base.net, run.folder / "base", adapters, uses, run.settings["time_zone"] or "UTC")


def bundle_id(device: str) -> str:
    """A device's name as an adapter's id: whatever may not stand there is a hyphen.

    Example:
        >>> bundle_id("load/H0 A"), bundle_id("_7")
        ('load-H0-A', 'x-7')
    """
    name = re.sub(r"[^A-Za-z0-9._-]", "-", device)[:100]
    return name if name[:1].isalnum() else "x" + name.replace("_", "-", 1)[:99]


def forecaster_task(settings: Mapping[str, Any], time_zone: str | None = None) -> ForecastSettings:
    """`Forecaster.settings` as a bundle's task.

    Args:
        settings: as there.
        time_zone: zone the devices live by.
    """
    width = fixed_ns(parse_freq(settings["freq"]))
    step_s = None if width is None else width / 1e9
    return forecast_settings({**settings, "step_s": step_s, "time_zone": time_zone})


def _devices(run: Run) -> dict[str, Path | None]:
    """Each device's adapter, its own or the one that the devices share."""
    found: dict[str, Path | None] = {}
    for device in run.read("split.json")["unseen"]:
        result = read_device(device_folder(run.folder, device))
        uses = "base" if result is None else result.methods[run.settings["method"]]["uses"]
        folders = {"own": device_folder(run.folder, device) / "adapter", "shared": run.folder / "shared"}
        found[device] = folders.get(uses)
    return found


def _fleet(run: Run, base: Forecaster, scratch: Path) -> dict[str, Path | None]:
    fleet = FleetForecaster.load(base, run.folder / "adapters")
    found: dict[str, Path | None] = {}
    for i, device in enumerate(fleet.fleet.ids):
        found[device] = scratch / str(i)
        fleet.export(device, scratch / str(i))
    return found
