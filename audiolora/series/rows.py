"""A device's rows by step of its grid, ready to be cut into windows; devices that cannot be are named in one error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from audiolora.series.problems import SeriesError, listing, require_long
from audiolora.series.steps import Grid, parse_freq

KEYS = ("unique_id", "ds", "y")


@dataclass(frozen=True)
class Columns:
    """Which columns become channels, in their order."""

    past: tuple[str, ...]  # y first
    known: tuple[str, ...]


@dataclass(frozen=True)
class Device:
    """Rows of one device by step: `steps` (m,) ascending, `past` (m, C) and `known` (m, K)."""

    unique_id: str
    grid: Grid
    steps: np.ndarray
    past: np.ndarray
    known: np.ndarray


def window_columns(frame: pd.DataFrame, lookback: int, horizon: int, known: Sequence[str]) -> Columns:
    """The channels of windows of `frame`; raises for what is no long frame, no length, or no covariate."""
    require_long(frame)
    for name, value in (("lookback", lookback), ("horizon", horizon)):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
            raise ValueError(f"{name} must be a number of steps, at least 1, got {value!r}; try {name}=24")
    if isinstance(known, str):
        raise ValueError(f"known must be a list of columns, got the string {known!r}; try known=[{known!r}]")
    covariates = [name for name in frame.columns if name not in KEYS]
    if missing := [name for name in known if name not in covariates]:
        raise ValueError(f"known covariates {missing} are no covariates of the frame; it has {covariates or 'none'}")
    if known and lookback < horizon:
        raise ValueError(
            f"known covariates need lookback >= horizon, since a channel has room for lookback values; got lookback="
            f"{lookback}, horizon={horizon}"
        )
    return Columns(("y", *(name for name in covariates if name not in known)), tuple(known))


def devices_of(frame: pd.DataFrame, columns: Columns, freq: Any, dtype: type = np.float32) -> list[Device]:
    """The devices of a long frame, in its order.

    Raises:
        SeriesError: devices with stamps missing, off the grid or twice; the message names all of them.
    """
    devices, problems = [], []
    offset = parse_freq(freq)
    for unique_id, rows in frame.groupby("unique_id", sort=False, observed=True):
        stamps = rows["ds"].to_numpy("datetime64[ns]")
        if np.isnat(stamps).any():
            problems.append(f"{unique_id}: {np.isnat(stamps).sum()} rows without a stamp")
            continue
        grid = Grid.of(stamps, offset)
        steps, on_grid = grid.steps(stamps)
        order = np.argsort(steps, kind="stable")
        twice = np.flatnonzero(np.diff(steps[order]) == 0)
        if not on_grid.all():
            problems.append(f"{unique_id}: {(~on_grid).sum()} stamps off the grid, the first {stamps[~on_grid][0]}")
        elif len(twice):
            problems.append(f"{unique_id}: {len(twice)} stamps twice, the first {stamps[order][twice[0]]}")
        else:
            past, known = (rows[list(names)].to_numpy(dtype)[order] for names in (columns.past, columns.known))
            devices.append(Device(str(unique_id), grid, steps[order], past, known))
    if problems:
        headline = (
            f"devices that are not on steps of {offset.freqstr}; look at checks.check, drop what is bad by keep_good"
        )
        raise SeriesError(listing(headline, problems))
    return devices
