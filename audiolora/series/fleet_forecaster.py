"""A base and an adapter a device as one forecaster: each window goes through the adapter of its device, many at once.

adapters/  fleet.safetensors, fleet.json, adapter_config.json   the adapters, a row a device
           forecaster.json                                      columns, step, scaling by device, whose base
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from audiolora.files import write_json
from audiolora.fleet import Fleet
from audiolora.series.fleet_settings import FleetSettings
from audiolora.series.fleet_training import fleet_config
from audiolora.series.forecaster import Forecaster
from audiolora.series.saving import FORMAT, INFO_FILE, base_fingerprint
from audiolora.series.windows import Windows

_ROWS_AT_ONCE = 4096


class FleetForecaster(Forecaster):
    """A `Forecaster` whose network has an adapter for each device of a fleet; other devices get the base.

    Args:
        base: fitted; its network is shared, and is the fleet's.
        fleet: over that network.
        name: the forecast's column.

    Example:
        >>> forecaster = FleetForecaster.load(base, "runs/homes/adapters")  # doctest: +SKIP
        >>> forecaster.predict(frame)  # doctest: +SKIP
    """

    def __init__(self, base: Forecaster, fleet: Fleet, name: str = "adapted") -> None:
        super().__init__(fleet.net, **{**base.settings(), "scaler": base.scaler, "name": name})
        self.fleet = fleet

    @classmethod
    def of(
        cls, base: Forecaster, values: Mapping[str, torch.Tensor], settings: FleetSettings, name: str = "adapted"
    ) -> FleetForecaster:
        """The adapters that `series.fleet_training` trained.

        Args:
            base: over which they were trained.
            values: device → row (P,).
            settings: of that training.
            name: the forecast's column.
        """
        fleet = Fleet(base.net, fleet_config(base.net, settings), list(values), seed=settings.seed)
        if values:
            fleet.values = torch.stack(list(values.values())).to(fleet.device)
        return cls(base, fleet, name)

    def fit(self, *args: Any, **kwargs: Any) -> Any:
        """Not here: adapters of a fleet are trained by `series.fleet_training`."""
        raise TypeError("a FleetForecaster is not fitted; train its adapters by series.fleet_training.train_chunk")

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write all adapters and ``forecaster.json``, in place of the folder."""
        self.fleet.save(folder)
        write_json(Path(folder) / INFO_FILE, self._info("fleet", self.settings()))

    def export(self, id: str, folder: str | os.PathLike[str]) -> None:
        """Write one device's adapter as an ordinary one of PEFT, which `Forecaster.load` puts over the plain base.

        Args:
            id: the device.
            folder: replaced.

        Raises:
            ValueError: the device has no adapter: the base is its forecaster.
        """
        if id not in self.fleet.ids:
            raise ValueError(
                f"{id} has no adapter: it was left out, fell back to the base, or is not of this fleet; there are "
                f"{', '.join(self.fleet.ids[:8]) or 'none'}{' …' if len(self.fleet) > 8 else ''}"
            )
        settings = self.settings()
        if "devices" in settings["scaler"]:
            known = {id: settings["scaler"]["devices"][id]}
            settings["scaler"] = {**settings["scaler"], "devices": known}
        self.fleet.save_adapter(id, folder)
        write_json(Path(folder) / INFO_FILE, self._info("adapter", settings))

    @classmethod
    def load(cls, base: Forecaster, folder: str | os.PathLike[str], ids: Sequence[str] | None = None) -> Any:  # type: ignore[override]
        """What `save` wrote.

        Args:
            base: over which the adapters were trained.
            folder: `save`'s.
            ids: devices wanted; None for all.

        Raises:
            ValueError: no fleet in the folder, another base, or devices that are not in it.
        """
        from audiolora.series.scaling import scaler_from_dict

        path = Path(folder) / INFO_FILE
        if not path.exists():
            raise ValueError(f"{folder} holds no fleet of forecasters: no {INFO_FILE} in it; name a run's adapters/")
        info = json.loads(path.read_text(encoding="utf-8"))
        if info.get("kind") != "fleet" or info.get("format") != FORMAT:
            raise ValueError(
                f"{path}: kind {info.get('kind')!r}, format {info.get('format')!r}; 'fleet', {FORMAT} wanted"
            )
        if info["base"] != (found := base_fingerprint(base.net)):
            raise ValueError(
                f"{folder}: its adapters were trained over another base: weights {info['base'][:12]} there, "
                f"{found[:12]} here; load the base of that run"
            )
        own = cls(base, Fleet.load(base.net, folder, ids), info["name"])
        own.scaler = scaler_from_dict(info["scaler"])
        return own

    def _info(self, kind: str, settings: Mapping[str, Any]) -> dict[str, Any]:
        net = self.fleet.net
        return {"format": FORMAT, "kind": kind, "base": base_fingerprint(net), **settings}

    def _run(self, x: np.ndarray, seen: Windows | None = None) -> np.ndarray:
        if seen is None:
            return super()._run(x)
        mine = np.isin(seen.unique_id.astype(str), self.fleet.ids)
        if not mine.any():
            return super()._run(x)
        rows, ids = np.flatnonzero(mine), seen.unique_id[mine].astype(str).tolist()
        parts = [
            self.fleet(torch.from_numpy(x[rows[i : i + _ROWS_AT_ONCE]]), ids[i : i + _ROWS_AT_ONCE]).cpu().numpy()
            for i in range(0, len(rows), _ROWS_AT_ONCE)
        ]
        own = np.concatenate(parts).astype(np.float64)
        if mine.all():
            return own
        values = np.empty((len(x), *own.shape[1:]))
        values[mine], values[~mine] = own, super()._run(x[~mine])
        return values
