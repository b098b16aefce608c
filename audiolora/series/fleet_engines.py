"""What trains the chunks of a fleet, here or on a cluster; those that are done already are read, not trained."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from audiolora.series.fleet_settings import FleetSettings
from audiolora.series.fleet_times import FleetTimes
from audiolora.series.fleet_training import Trained, Watch, load_trained, save_trained, train_here
from audiolora.series.forecaster import Forecaster

ENGINES = ("local", "ray")


def train_fleet(
    base: Forecaster,
    chunks: Mapping[str, pd.DataFrame],
    times: FleetTimes,
    settings: FleetSettings,
    *,
    out: Path,
    engine: str = "local",
    address: str | None = None,
    watch: Watch | None = None,
) -> Trained:
    """Train every chunk; after a kill the same call goes on, and ends with the same adapters on either engine.

    Args:
        base: its scaler fitted, its network frozen.
        chunks: name → long frame.
        times: when.
        settings: how.
        out: a folder that keeps what is done, a folder a chunk.
        engine: ``"local"``: one chunk after another, which goes on within a chunk too; ``"ray"``: `train_on_ray`.
        address: of a Ray cluster.
        watch: called with histories as they grow.

    Returns:
        All devices in the order of the chunks.

    Raises:
        ValueError: an unknown engine.
    """
    if engine not in ENGINES:
        raise ValueError(f"engine must be one of {', '.join(ENGINES)}, got {engine!r}")
    done = {name: found for name in chunks if (found := load_trained(out / name)) is not None}
    for trained in done.values():
        if watch is not None:
            watch(trained.history)
    left = {name: frame for name, frame in chunks.items() if name not in done}
    if engine == "ray" and left:
        from audiolora.series.fleet_ray import train_on_ray

        coming = train_on_ray(base, left, times, settings, address=address, watch=watch)
    else:
        coming = train_here(base, left, times, settings, out=out, watch=watch)
    for name, trained in coming:
        save_trained(trained, out / name)
        shutil.rmtree(out / f"{name}.steps", ignore_errors=True)
        done[name] = trained
    ordered = [done[name] for name in chunks]
    return Trained(
        {id: row for one in ordered for id, row in one.values.items()},
        {id: history for one in ordered for id, history in one.history.items()},
    )
