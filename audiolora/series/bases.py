"""The base of a fleet: trained on some of its devices, or a folder that a run has left."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from audiolora.series.forecaster import Forecaster
from audiolora.series.nets import TCNForecaster
from audiolora.series.saving import NETWORK_INFO


def load_base(folder: str | os.PathLike[str]) -> Forecaster:
    """A base that `Forecaster.save` wrote over a `TCNForecaster`, e.g. ``base/`` in a run's folder, or that folder.

    Raises:
        ValueError: there is none, or it is an adapter, or a network that is built otherwise.

    Example:
        >>> load_base("runs/homes/base").lookback  # doctest: +SKIP
        168
    """
    folder = Path(folder)
    inside = folder / "base"
    place = inside if (inside / NETWORK_INFO).exists() else folder
    if not (place / NETWORK_INFO).exists():
        raise ValueError(
            f"{folder} holds no base that can be built: no {NETWORK_INFO} in it or in its base/; name the folder of a "
            "run, or one where Forecaster.save has put a TCNForecaster"
        )
    described = json.loads((place / NETWORK_INFO).read_text(encoding="utf-8"))
    if described.get("network") != "TCNForecaster":
        raise ValueError(f"{place / NETWORK_INFO}: network {described.get('network')!r}, and this reads TCNForecaster")
    return Forecaster.load(TCNForecaster(**described["settings"]), place)


def pretrain_base(
    forecaster: Forecaster,
    frame: pd.DataFrame,
    ids: Sequence[str],
    *,
    until: Any,
    out: Path,
    **fit: Any,
) -> Forecaster:
    """Fit ``forecaster`` on these devices up to ``until``; goes on in ``out`` where it was interrupted.

    Args:
        forecaster: over a new network, which is trained in full.
        frame: long form.
        ids: devices to learn from.
        until: nothing behind it is looked at.
        out: a folder for checkpoints.
        fit: more arguments of `Forecaster.fit`.

    Returns:
        ``forecaster``, its network frozen.
    """
    forecaster.net.requires_grad_(True)
    forecaster.fit(frame[frame["unique_id"].isin(ids)], until=until, out=out, **fit)
    forecaster.net.requires_grad_(False).eval()
    return forecaster


def new_base(channels_in: int, horizon: int, *, width: int, seed: int) -> TCNForecaster:
    """A `TCNForecaster` with weights drawn by ``seed``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return TCNForecaster(channels_in, horizon, channels=width)
