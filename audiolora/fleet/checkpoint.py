"""A training on disk: everything that the rest of it is a function of, so that a resumed one ends as if never stopped.

The order of a device's samples is a function of its id, the seed and the epoch, so there is no generator to keep.
"""

from __future__ import annotations

import json
import time
from array import array
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file

from audiolora.fleet.history import DeviceHistory
from audiolora.fleet.storage import write_folder

if TYPE_CHECKING:
    from audiolora.fleet.training import Run

_TENSORS = ("values", "first", "second", "best", "begin", "steps")
_FILE, _INDEX = "state.safetensors", "state.json"


class Clock:
    """Says when the next checkpoint is due.

    Args:
        every_s: seconds.
    """

    def __init__(self, every_s: float) -> None:
        self.every_s, self.last = every_s, time.monotonic()

    def due(self) -> bool:
        """Whether it is time; if so the clock starts anew."""
        late = time.monotonic() - self.last >= self.every_s
        if late:
            self.last = time.monotonic()
        return late


def save(run: Run, folder: Path) -> None:
    """Write the training's state; the folder is replaced whole."""
    tensors = {name: getattr(run, name) for name in _TENSORS if getattr(run, name) is not None}
    losses = [run.history[id].losses for id in run.ids]
    tensors["losses"] = torch.tensor([loss for each in losses for loss in each], dtype=torch.float64)
    devices = {id: {**asdict(run.history[id]), "losses": len(run.history[id].losses)} for id in run.ids}
    index = {"training": _training(run), "waiting": run.waiting, "devices": devices}
    # NaN, a validation that diverged, is Python's own word in this file, which nobody else reads.
    write_folder(folder, {_FILE: {k: v.contiguous().clone() for k, v in tensors.items()}, _INDEX: json.dumps(index)})


def resume(run: Run, folder: Path) -> None:
    """Put the state of an interrupted training into ``run``; nothing happens where there is none.

    Raises:
        ValueError: the folder holds another training.
    """
    if not (folder / _INDEX).exists():
        return
    index = json.loads((folder / _INDEX).read_text(encoding="utf-8"))
    mine = json.loads(json.dumps(_training(run)))
    differ = [key for key in mine if mine[key] != index["training"].get(key)]
    if differ:
        said = "; ".join(f"{k}: {_short(index['training'].get(k))} there, {_short(mine[k])} here" for k in differ)
        raise ValueError(f"{folder} holds another training ({said}); choose another folder, or delete it")
    tensors = load_file(folder / _FILE, device=str(run.values.device))
    losses = array("d", tensors.pop("losses").tolist())
    for name, value in tensors.items():
        setattr(run, name, value)
    run.waiting = index["waiting"]
    for id, saved in index["devices"].items():
        mine, losses = losses[: saved["losses"]], losses[saved["losses"] :]
        checks = [(step, loss) for step, loss in saved["validation"]]
        run.history[id] = DeviceHistory(**{**saved, "losses": mine, "validation": checks})


def _training(run: Run) -> dict[str, Any]:
    """What must be the same for a training to go on."""
    sums = [float(table.sum(dtype=torch.float64)) for table in (run.table.x, run.table.y)]
    return {
        "devices": run.ids,
        "samples": run.table.count,
        "sums of the data": [str(value) for value in sums],
        "validated": [run.ids[i] for i in run.checked],
        **run.settings.as_json(),
    }


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) < 60 else text[:57] + "…"
