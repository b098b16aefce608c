"""An adapter a device: windows of a chunk of devices become the samples of an `audiolora.fleet.Fleet`.

A chunk is a function of the base, its devices' rows, the times and the settings alone. So chunks may be trained one
after another or spread over machines (`series.fleet_ray`), and one that was interrupted begins again to the same end.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pandas as pd
import torch
from peft import LoraConfig
from safetensors.torch import load_file
from torch import nn

import audiolora
from audiolora.fleet import DeviceHistory, Fleet
from audiolora.fleet.batches import Samples
from audiolora.fleet.storage import write_folder
from audiolora.series.fleet_settings import FleetSettings
from audiolora.series.fleet_times import FleetTimes, history
from audiolora.series.forecaster import Forecaster
from audiolora.series.windows import windows

Watch = Callable[[Mapping[str, DeviceHistory]], None]
_VALUES, _HISTORY = "values.safetensors", "history.json"


@dataclass(frozen=True)
class Trained:
    """What a chunk came to.

    Attributes:
        values: device → the row (P,) of its adapter, as `Fleet.values` has it.
        history: device → what training did to it.
    """

    values: dict[str, torch.Tensor]
    history: dict[str, DeviceHistory]


def fleet_config(net: nn.Module, settings: FleetSettings, head: str = "head") -> LoraConfig:
    """LoRA in every convolution; with the settings also biases and the module called ``head``.

    Raises:
        ValueError: the network has no convolution, or no such head.

    Example:
        >>> from audiolora.series.nets import TCNForecaster
        >>> fleet_config(TCNForecaster(1, 6, channels=4), FleetSettings()).modules_to_save
        ['head']
    """
    if settings.head and not isinstance(getattr(net, head, None), nn.Module):
        raise ValueError(f"{type(net).__name__} has no module {head!r} for each device's own head; set head=False")
    config = audiolora.lora_config(net, r=settings.r, targets="conv")
    return replace(config, lora_bias=settings.bias, modules_to_save=[head] if settings.head else None)


def device_samples(
    base: Forecaster, frame: pd.DataFrame, *, after: pd.Timestamp, until: pd.Timestamp, stride: int
) -> dict[str, Samples]:
    """Device → scaled windows x (m, C, lookback) and y (m, horizon) with targets in (after, until].

    Devices without a window are not in it.
    """
    seen = windows(
        frame[["unique_id", "ds", *base.channels]], base.lookback, base.horizon, freq=base.freq, known=base.known,
        after=after, until=until, stride=stride,
    )  # fmt: skip
    scaled = base.scaler.statistics(seen)
    x, y = torch.from_numpy(scaled.transform(seen.x)), torch.from_numpy(scaled.transform_target(seen.y))
    sizes = seen.counts["windows"].tolist()
    parts = zip(seen.counts["unique_id"], x.split(sizes), y.split(sizes), strict=True)
    return {str(name): (x, y) for name, x, y in parts if len(x)}


def train_chunk(
    base: Forecaster,
    frame: pd.DataFrame,
    times: FleetTimes,
    settings: FleetSettings,
    *,
    out: Path | None = None,
    watch: Watch | None = None,
) -> Trained:
    """Train an adapter for each device of ``frame``; one that never beats the base on its validation ends as the base.

    Args:
        base: with its scaler fitted; its network is as it was afterwards.
        frame: long form, the chunk's devices.
        times: when.
        settings: how.
        out: a folder for checkpoints; the same call goes on from there.
        watch: called after each step with the history so far.

    Raises:
        ValueError: a device without a window to train on or to validate by.
    """
    seen = history(frame, times)
    train = device_samples(base, seen, after=times.history_after, until=times.train_until, stride=settings.stride)
    val = device_samples(base, seen, after=times.train_until, until=times.val_until, stride=settings.stride)
    if lacking := [name for name in frame["unique_id"].unique() if name not in train or name not in val]:
        raise ValueError(f"{', '.join(lacking[:20])}: no window to train on or to validate by; leave the devices out")
    fleet = Fleet(base.net, fleet_config(base.net, settings), list(train), seed=settings.seed)
    try:
        done = fleet.fit(
            train, val=val, out=out, loss=base._loss if base.quantiles else base.loss, epochs=settings.epochs,
            batch_size=settings.batch_size, lr=settings.lr, patience=settings.patience, seed=settings.seed,
            toward="start" if settings.pull else None, pull=settings.pull, progress=False, watch=watch,
        )  # fmt: skip
        return Trained(dict(zip(fleet.ids, fleet.values.cpu().clone(), strict=True)), dict(done))
    finally:
        fleet.unload()


def train_here(
    base: Forecaster,
    chunks: Mapping[str, pd.DataFrame],
    times: FleetTimes,
    settings: FleetSettings,
    *,
    out: Path,
    watch: Watch | None = None,
) -> Iterator[tuple[str, Trained]]:
    """Train the chunks one after another in this process; arguments as in `train_chunk`, a folder a chunk in ``out``.

    Yields:
        The chunk's name and what it came to.
    """
    for name, frame in chunks.items():
        yield name, train_chunk(base, frame, times, settings, out=out / f"{name}.steps", watch=watch)


def save_trained(trained: Trained, folder: Path) -> None:
    """Write what a chunk came to: the folder is there whole or not at all."""
    devices = {name: {**asdict(one), "losses": list(one.losses)} for name, one in trained.history.items()}
    stacked = torch.stack(list(trained.values.values()))
    # NaN, of a device that diverged, is Python's own word in this file, which nobody else reads.
    text = json.dumps({"ids": list(trained.values), "devices": devices})
    write_folder(folder, {_VALUES: {"values": stacked}, _HISTORY: text})


def load_trained(folder: Path) -> Trained | None:
    """What `save_trained` wrote, or None if the chunk is not done."""
    if not folder.exists():
        return None
    saved = json.loads((folder / _HISTORY).read_text(encoding="utf-8"))
    rows = load_file(folder / _VALUES)["values"]
    devices = {
        name: DeviceHistory(
            **{**one, "losses": array("d", one["losses"]), "validation": [(s, loss) for s, loss in one["validation"]]}
        )
        for name, one in saved["devices"].items()
    }
    return Trained(dict(zip(saved["ids"], rows, strict=True)), devices)


def keeps_base(history: DeviceHistory, settings: FleetSettings) -> bool:
    """Whether the adapter did not beat the base on the device's validation windows by ``least_gain``."""
    return history.best_step == 0 or not history.gain > settings.least_gain
