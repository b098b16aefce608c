"""A device's rows by step of its grid, ready to be cut into windows; devices that cannot be are named in one error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
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
class History:
    """One device by time.

    Attributes:
        name: its id.
        ds: (m,) its stamps, datetime64[ns] ascending, none missing.
        values: its columns, (m,) float64 each.
        stampless: how many of its rows have no stamp; they are left out here.
    """

    name: str
    ds: np.ndarray
    values: dict[str, np.ndarray]
    stampless: int


@dataclass(frozen=True)
class Device:
    """Rows of one device by step: `steps` (m,) ascending, `past` (C, m) and `known` (K, m)."""

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


def histories_of(frame: pd.DataFrame) -> list[History]:
    """The devices of a long frame, in its order; the frame is sorted once for all of them."""
    codes, names = pd.factorize(frame["unique_id"])
    stamps = frame["ds"].to_numpy("datetime64[ns]")
    order = np.lexsort((stamps, codes))  # by device, then by time, rows without a stamp last
    bounds = np.searchsorted(codes[order], np.arange(len(names) + 1))
    columns = {name: frame[name].to_numpy(np.float64)[order] for name in frame.columns if name not in KEYS[:2]}
    stamps, histories = stamps[order], []
    for name, (begin, end) in zip(names, pairwise(bounds), strict=True):
        stampless = int(np.isnat(stamps[begin:end]).sum())
        here = slice(begin, end - stampless)
        histories.append(
            History(str(name), stamps[here], {column: values[here] for column, values in columns.items()}, stampless)
        )
    return histories


def devices_of(frame: pd.DataFrame, columns: Columns, freq: Any, dtype: type = np.float32) -> list[Device]:
    """The devices of a long frame, in its order.

    Raises:
        SeriesError: devices with stamps missing, off the grid or twice; the message names all of them.
    """
    devices, problems = [], []
    offset = parse_freq(freq)
    for history in histories_of(frame):
        name, stamps = history.name, history.ds
        if history.stampless:
            problems.append(f"{name}: {history.stampless} rows without a stamp")
            continue
        grid = Grid.of(stamps, offset)
        steps, on_grid = grid.steps(stamps)
        twice = np.flatnonzero(np.diff(stamps) == np.timedelta64(0))
        if not on_grid.all():
            problems.append(f"{name}: {(~on_grid).sum()} stamps off the grid, the first {stamps[~on_grid][0]}")
        elif len(twice):
            problems.append(f"{name}: {len(twice)} stamps twice, the first {stamps[twice[0]]}")
        else:
            past, known = (_stacked(history, chosen, dtype) for chosen in (columns.past, columns.known))
            devices.append(Device(name, grid, steps, past, known))
    if problems:
        headline = (
            f"devices that are not on steps of {offset.freqstr}; look at checks.check, drop what is bad by keep_good"
        )
        raise SeriesError(listing(headline, problems))
    return devices


def _stacked(history: History, columns: tuple[str, ...], dtype: type) -> np.ndarray:
    """The columns as rows of one array (C, m), also where there are none."""
    values = [history.values[column] for column in columns]
    return np.array(values, dtype).reshape(len(columns), len(history.ds))
