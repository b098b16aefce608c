"""A forecaster beside what it must beat, at the same cutoffs: seasonal naive, ridge, and the base without adapters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
from peft import PeftModel

from audiolora.series.baselines import ridge, seasonal_naive
from audiolora.series.forecaster import Forecaster

BASELINES = ("seasonal_naive", "ridge", "zero_shot")


def compare(
    forecaster: Forecaster,
    frame: pd.DataFrame,
    *,
    seasonality: int,
    origins: int = 1,
    step: int | None = None,
    start: Any = None,
    after: Any = None,
    others: Mapping[str, Forecaster] | None = None,
) -> pd.DataFrame:
    """A backtest with a column a model; give it to `series.metrics.score`.

    The zero-shot column is the network with its adapters switched off, where it has any. Rows that some model has no
    forecast for (a gap in its lookback) are left out for all.

    Args:
        forecaster: fitted on what lies before ``start``.
        frame: long form, with the past before ``start``.
        seasonality: steps a season has.
        origins, step, start: the cutoffs, as in `Forecaster.backtest`.
        after: ridge learns from targets in (after, the first cutoff]: give it the history that the adapter had.
        others: more forecasters by column, e.g. ``{"zero_shot": base}`` beside one that was trained in full.

    Returns:
        DataFrame ``unique_id``, ``ds``, ``cutoff``, ``y``, the forecaster's columns, ``seasonal_naive``, ``ridge``,
        ``zero_shot`` and the others.

    Raises:
        ValueError: a name twice, or a baseline that cannot be formed for some device (it is named).

    Example:
        >>> table = compare(forecaster, frame, seasonality=24, origins=4)  # doctest: +SKIP
    """
    rolling = {"origins": origins, "step": step, "start": start}
    columns = ["unique_id", "ds", "y", *forecaster.channels[1:]]
    seen = forecaster.windows_at(frame, forecaster.cutoffs(frame, **rolling))
    found = forecaster.forecast_at(seen, frame)
    more = dict(others or {})
    if taken := sorted(set(more) & {"seasonal_naive", "ridge", forecaster.name, *frame.columns}):
        raise ValueError(f"others: {', '.join(taken)} is a column already; take another name")
    if isinstance(forecaster.net, PeftModel) and "zero_shot" not in more:
        with forecaster.net.disable_adapter():
            found = _beside(found, _renamed(forecaster.forecast_at(seen, frame), forecaster.name, "zero_shot"))
    for name, other in more.items():
        alike = _reads(other) == _reads(forecaster)  # then it sees the same windows, which take longest to cut
        table = other.forecast_at(seen, frame) if alike else other.backtest(frame, **rolling)
        found = _beside(found, _renamed(table, other.name, name))
    cutoffs = found[["unique_id", "cutoff"]].drop_duplicates()
    if cutoffs.empty:
        raise ValueError("no device has a whole lookback at any of the cutoffs; take another start, or fill the gaps")
    found = _beside(found, seasonal_naive(frame, cutoffs, forecaster.horizon, seasonality, freq=forecaster.freq))
    linear = ridge(
        frame[columns], cutoffs, forecaster.horizon, forecaster.lookback, freq=forecaster.freq, known=forecaster.known,
        after=after, until=cutoffs["cutoff"].min(),
    )  # fmt: skip
    return _beside(found, linear)


def _reads(forecaster: Forecaster) -> tuple[Any, ...]:
    return forecaster.lookback, forecaster.horizon, forecaster.freq, forecaster.channels, forecaster.known


def _renamed(table: pd.DataFrame, name: str, new: str) -> pd.DataFrame:
    return table.rename(columns=lambda column: new + column.removeprefix(name) if column.startswith(name) else column)


def _beside(found: pd.DataFrame, more: pd.DataFrame) -> pd.DataFrame:
    keys = ["unique_id", "ds", "cutoff"]
    return found.merge(more.drop(columns="y"), on=keys, how="inner")
