"""How good forecasts are: MAE, MSE, MASE and scaled CRPS by utilsforecast, intervals over devices by SciPy's bootstrap.

Forecasts are in long form: ``unique_id``, ``ds``, ``cutoff``, ``y`` and a column a model. A model's quantiles are
columns beside its own: ``MODEL_q0.1`` (ours) or ``MODEL-lo-80`` and ``MODEL-hi-80`` (Nixtla's).

MASE (Hyndman and Koehler, 2006) divides a device's error by what the seasonal naive forecast errs on that device's own
history up to the cutoff, so devices of any size can be averaged. The scaled CRPS (Rangapuram et al., 2021) is twice the
mean quantile loss over the sum of |y|; a model without quantiles is scored as if all probability were at its point.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

KEYS = ("unique_id", "ds", "cutoff", "y")
METRICS = ("mae", "mse", "mase", "scaled_crps")
_OURS = re.compile(r"^(?P<model>.+)_q(?P<quantile>[01]?\.\d+)$")
_NIXTLA = re.compile(r"^(?P<model>.+)-(?P<side>lo|hi)-(?P<level>\d+(?:\.\d+)?)$")
_GROUPS = ("unique_id", "cutoff")


def models_of(forecasts: pd.DataFrame) -> dict[str, dict[float, str]]:
    """The models of a table of forecasts, each with its quantile columns by quantile.

    Example:
        >>> models_of(pd.DataFrame(columns=["unique_id", "ds", "cutoff", "y", "tcn", "tcn_q0.1", "tcn-hi-80", "naive"]))
        {'tcn': {0.1: 'tcn_q0.1', 0.9: 'tcn-hi-80'}, 'naive': {}}
    """
    columns = [str(name) for name in forecasts.columns if name not in KEYS]
    quantiles = {name: found for name in columns if (found := _quantile(name)) and found[0] in columns}
    return {
        model: dict(sorted((q, name) for name, (of, q) in quantiles.items() if of == model))
        for model in columns
        if model not in quantiles
    }


def score(
    forecasts: pd.DataFrame, history: pd.DataFrame, *, seasonality: int, by: str | Sequence[str] = "unique_id"
) -> pd.DataFrame:
    """Errors of each model, a row a model and group.

    Rows whose y is missing (NaN) are left out for all models alike.

    Args:
        forecasts: long form with a column a model, in the unit of y.
        history: long form (unique_id, ds, y) with each device's past up to every cutoff; later rows are not looked at.
        seasonality: steps a season has, for MASE: 24 for hourly data with a daily rhythm.
        by: ``"unique_id"``, ``"cutoff"`` or both; errors are computed by device and cutoff, and averaged over the rest.

    Returns:
        DataFrame of the columns of ``by``, ``model``, ``mae``, ``mse`` (squared units), ``mase`` and, where some model
        has quantiles, ``scaled_crps``. MASE is NaN for a device whose history never changes from season to season, and
        the scaled CRPS where y is zero throughout: neither is defined there.

    Raises:
        ValueError: a missing column, a forecast that is not finite (device, cutoff and model are named), a device with
            no more history than a season, or quantiles that differ between models.

    Example:
        >>> stamps = pd.date_range("2024", periods=6, freq="h")
        >>> history = pd.DataFrame({"unique_id": "a", "ds": stamps, "y": [1.0, 2.0, 1.0, 3.0, 2.0, 4.0]})
        >>> forecasts = history.tail(2).assign(cutoff=stamps[3], flat=2.0)
        >>> score(forecasts, history, seasonality=1)[["model", "mae", "mase"]].values.tolist()
        [['flat', 1.0, 0.75]]
    """
    by = [by] if isinstance(by, str) else list(by)
    if unknown := [name for name in by if name not in _GROUPS] or not by:
        raise ValueError(f"by must name unique_id, cutoff or both, got {unknown or by}")
    if seasonality < 1:
        raise ValueError(
            f"seasonality must be at least 1 step, got {seasonality}; 24 for hourly data with a daily rhythm"
        )
    models = models_of(forecasts)
    scored = _checked(forecasts, models).dropna(subset=["y"])
    known_past = _past(scored, history, seasonality)
    tables = _losses(scored, known_past, models, seasonality)
    long = [
        table.melt(id_vars=list(_GROUPS), value_vars=list(models), var_name="model").assign(metric=metric)
        for metric, table in tables.items()
    ]
    values = pd.concat(long).replace([np.inf, -np.inf], np.nan)
    mean = values.groupby([*by, "model", "metric"], sort=False)["value"].mean().unstack("metric")
    return mean[list(tables)].reset_index().rename_axis(columns=None)


def summarise(
    scores: pd.DataFrame,
    *,
    reference: str | None = None,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """Models × metrics over all devices, with percentile bootstrap intervals over devices, which are what was sampled.

    Args:
        scores: from `score` by ``unique_id``.
        reference: a model that the others are compared with, device by device, e.g. ``"zero_shot"``.
        confidence: level of the intervals, between 0 and 1.
        resamples: of the bootstrap.
        seed: of the bootstrap; the same seed gives the same interval.

    Returns:
        DataFrame ``model``, ``metric``, ``value`` (the mean over devices), ``low``, ``high``, ``devices`` (how many
        have the metric); with a reference also ``change`` (the mean of the device's error minus the reference's),
        ``change_low``, ``change_high``, ``wins`` (devices with a smaller error) and ``worst`` (the largest relative
        growth of a device's error, as a share of the reference's).

    Raises:
        ValueError: no rows, more than one row a device and model, or an unknown reference.

    Example:
        >>> scores = pd.DataFrame({"unique_id": ["a", "b"], "model": "tcn", "mae": [1.0, 3.0]})
        >>> summarise(scores)[["value", "low", "high", "devices"]].values.tolist()
        [[2.0, 1.0, 3.0, 2.0]]
    """
    if scores.empty or scores.duplicated(["unique_id", "model"]).any():
        raise ValueError("scores must have one row a device and model, and at least one: score(..., by='unique_id')")
    models = list(scores["model"].unique())
    if reference is not None and reference not in models:
        raise ValueError(f"reference must be one of {models}, got {reference!r}")
    bootstrap: dict[str, Any] = {"confidence": confidence, "resamples": resamples, "seed": seed}
    rows: list[dict[str, Any]] = []
    for metric in (name for name in METRICS if name in scores):
        wide = scores.pivot(index="unique_id", columns="model", values=metric)
        for model in models:
            low, high = mean_interval(wide[model], **bootstrap)
            row = {"model": model, "metric": metric, "value": wide[model].mean(), "low": low, "high": high}
            row["devices"] = int(wide[model].notna().sum())
            rows.append(row | (_against(wide[model], wide[reference], bootstrap) if reference is not None else {}))
    return pd.DataFrame(rows)


def mean_interval(
    values: Any, *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """The percentile bootstrap interval of a mean; NaN are left out, and one value alone is its own interval.

    Example:
        >>> mean_interval([2.0])
        (2.0, 2.0)
    """
    from scipy.stats import bootstrap

    known = np.asarray(values, np.float64)
    known = known[~np.isnan(known)]
    if not len(known):
        return np.nan, np.nan
    if len(known) == 1:
        return float(known[0]), float(known[0])
    found = bootstrap(
        (known,), np.mean, confidence_level=confidence, n_resamples=resamples, method="percentile",
        rng=np.random.default_rng(seed),
    )  # fmt: skip
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def _against(model: pd.Series, reference: pd.Series, bootstrap: dict[str, Any]) -> dict[str, float]:
    change = model - reference
    low, high = mean_interval(change, **bootstrap)
    worst = (change / reference.abs().where(reference != 0)).max()
    return {"change": change.mean(), "change_low": low, "change_high": high, "wins": (change < 0).sum(), "worst": worst}


def _quantile(name: str) -> tuple[str, float] | None:
    """The model and the quantile that a column's name tells, if it tells any."""
    if found := _OURS.match(name):
        return found["model"], float(found["quantile"])
    if found := _NIXTLA.match(name):
        tail = (100 - float(found["level"])) / 200
        return found["model"], round(tail if found["side"] == "lo" else 1 - tail, 6)
    return None


def _checked(forecasts: pd.DataFrame, models: dict[str, dict[float, str]]) -> pd.DataFrame:
    if missing := [name for name in KEYS if name not in forecasts.columns]:
        raise ValueError(f"forecasts need the columns {', '.join(KEYS)}; {', '.join(missing)} are missing")
    if not models:
        raise ValueError(f"forecasts have no model: no column beside {', '.join(KEYS)}")
    if forecasts.empty:
        raise ValueError("there are no forecasts to score: the table has no rows")
    sets = {tuple(quantiles) for quantiles in models.values() if quantiles}
    if len(sets) > 1:
        raise ValueError(f"models must forecast the same quantiles to be compared, got {sorted(sets)}; drop the others")
    for name in [column for model, quantiles in models.items() for column in (model, *quantiles.values())]:
        broken = ~np.isfinite(forecasts[name].to_numpy(np.float64))
        if broken.any():
            first = forecasts.loc[broken].iloc[0]
            raise ValueError(
                f"{first['unique_id']}, cutoff {first['cutoff']}: {name} forecasts {first[name]} for {first['ds']} "
                f"(and {broken.sum() - 1} more rows are not finite); a model is scored on all rows or on none, drop it "
                "or the device"
            )
    return forecasts


def _past(scored: pd.DataFrame, history: pd.DataFrame, seasonality: int) -> pd.DataFrame:
    """Each device's history, sorted; an error names those that have not a season's difference before a cutoff."""
    past = history.loc[history["unique_id"].isin(scored["unique_id"]), ["unique_id", "ds", "y"]]
    past = past.sort_values(["unique_id", "ds"])
    short = []
    for unique_id, cutoff in scored.groupby("unique_id", sort=False)["cutoff"].min().items():
        rows = int(((past["unique_id"] == unique_id) & (past["ds"] <= cutoff)).sum())
        if rows <= seasonality:
            short.append(f"{unique_id}: {rows} rows up to {cutoff}")
    if short:
        raise ValueError(
            f"MASE needs more than {seasonality} steps of history before the first cutoff: {'; '.join(short[:8])}"
            + (f" and {len(short) - 8} more" if len(short) > 8 else "")
            + "; give the devices' whole past as history, or take a later start"
        )
    return past


def _losses(
    scored: pd.DataFrame, past: pd.DataFrame, models: dict[str, dict[float, str]], seasonality: int
) -> dict[str, pd.DataFrame]:
    from utilsforecast import losses

    names = list(models)
    tables = {
        "mae": losses.mae(scored, names),
        "mse": losses.mse(scored, names),
        "mase": losses.mase(scored, names, seasonality, past),
    }
    quantiles = next((list(found) for found in models.values() if found), None)
    if quantiles:
        columns = {model: list(found.values()) or [model] * len(quantiles) for model, found in models.items()}
        crps = losses.scaled_crps(scored, columns, np.array(quantiles)).set_index(list(_GROUPS))
        size = scored["y"].abs().groupby([scored[name] for name in _GROUPS]).sum()
        tables["scaled_crps"] = crps[names].where(size.reindex(crps.index) > 0).reset_index()
    return tables
