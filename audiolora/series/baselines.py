"""What a forecast must beat: the last season again, and a ridge regression a device.

Both give forecasts in long form (``unique_id``, ``ds``, ``cutoff``, ``y`` and a column of their own), for the cutoffs
that are asked for, from nothing behind them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from audiolora.series.problems import require_long
from audiolora.series.windows import Windows, latest, windows

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

ALPHAS = tuple(float(alpha) for alpha in np.logspace(-2, 5, 15))
"""Ridge penalties that are tried, on standardised inputs."""

_FOLDS = 3


def seasonal_naive(frame: pd.DataFrame, cutoffs: Any, horizon: int, seasonality: int, *, freq: Any) -> pd.DataFrame:
    """The value one season (or as many as it takes) before: column ``seasonal_naive``.

    Args:
        frame: long form.
        cutoffs: stamps, for all devices; or a DataFrame ``unique_id``, ``cutoff``.
        horizon: steps to forecast.
        seasonality: steps a season has.
        freq: the step, e.g. ``"h"``.

    Returns:
        A row a device, cutoff and step: ``unique_id``, ``ds``, ``cutoff``, ``y`` (NaN where the frame has none),
        ``seasonal_naive``.

    Raises:
        ValueError: a device has no value a season before some step, named with the cutoff.

    Example:
        >>> frame = pd.DataFrame({"unique_id": "a", "ds": pd.date_range("2024", periods=6, freq="h"), "y": range(6)})
        >>> seasonal_naive(frame, [frame["ds"][3]], 2, 3, freq="h")["seasonal_naive"].tolist()
        [1.0, 2.0]
    """
    require_long(frame)
    if horizon < 1 or seasonality < 1:
        raise ValueError(f"horizon and seasonality must be at least 1 step, got {horizon} and {seasonality}")
    step = pd.tseries.frequencies.to_offset(freq)
    blocks = []
    for h in range(1, horizon + 1):
        block = pairs(frame, cutoffs)
        back = seasonality * -(-h // seasonality) - h
        block["ds"] = block["cutoff"] + h * step
        block["seen"] = block["cutoff"] - back * step if back else block["cutoff"]
        blocks.append(block)
    rows = pd.concat(blocks, ignore_index=True)
    values = frame.set_index(["unique_id", "ds"])["y"].astype(float)
    rows["y"] = values.reindex(pd.MultiIndex.from_frame(rows[["unique_id", "ds"]])).to_numpy()
    rows["seasonal_naive"] = values.reindex(pd.MultiIndex.from_frame(rows[["unique_id", "seen"]])).to_numpy()
    lacking = rows[rows["seasonal_naive"].isna()]
    if len(lacking):
        first = lacking.iloc[0]
        raise ValueError(
            f"{first['unique_id']}, cutoff {first['cutoff']}: no value at {first['seen']}, {seasonality} steps or more "
            f"before {first['ds']} ({len(lacking)} such rows); leave the device out, fill the gap by a named rule "
            "(checks.fill), or begin later"
        )
    return _in_order(rows, "seasonal_naive")


def ridge(
    frame: pd.DataFrame,
    cutoffs: Any,
    horizon: int,
    lookback: int,
    *,
    freq: Any,
    known: Sequence[str] = (),
    after: Any = None,
    until: Any = None,
    stride: int = 1,
    alphas: Sequence[float] = ALPHAS,
) -> pd.DataFrame:
    """A linear map a device from lookback (and known covariates of the horizon) to horizon: column ``ridge``.

    scikit-learn's RidgeCV on standardised inputs; its penalty is chosen by blocks of time within the training windows.

    Args:
        frame: long form; columns beside unique_id, ds, y and ``known`` are past covariates and take part.
        cutoffs, horizon, freq: as in `seasonal_naive`.
        lookback: steps it sees.
        known: covariates whose future is known.
        after: training targets lie strictly behind it: a device's history begins there.
        until: it is fitted once on what lies up to here, at or before every cutoff; None: anew at every cutoff, on
            all up to it.
        stride: steps from one training window to the next.
        alphas: penalties to try.

    Returns:
        As `seasonal_naive`. A device whose lookback has a gap at a cutoff has no rows for it.

    Raises:
        ValueError: ``until`` behind a cutoff, or a device with too few whole windows to train on.

    Example:
        >>> y = np.sin(np.arange(300) * 2 * np.pi / 24)
        >>> frame = pd.DataFrame({"unique_id": "a", "ds": pd.date_range("2024", periods=300, freq="h"), "y": y})
        >>> found = ridge(frame, [frame["ds"][275]], 24, 24, freq="h")
        >>> bool((found["ridge"] - found["y"]).abs().max() < 0.01)
        True
    """
    require_long(frame)
    wanted = pairs(frame, cutoffs)
    if until is not None and (wanted["cutoff"] < pd.Timestamp(until)).any():
        early = wanted.loc[wanted["cutoff"].idxmin()]
        raise ValueError(
            f"{early['unique_id']}: the cutoff {early['cutoff']} lies before until={until}, so ridge would have "
            "learned from what it is to forecast; take an earlier until, or None"
        )
    tables = []
    for unique_id, rows in frame.groupby("unique_id", sort=False, observed=True):
        fitted: Pipeline | None = None
        for cutoff in wanted.loc[wanted["unique_id"] == unique_id, "cutoff"]:
            seen = latest(rows, lookback, horizon, freq=freq, known=known, at=cutoff)
            if not len(seen) or seen.cutoff[0] != cutoff.to_datetime64():
                continue
            if fitted is None or until is None:
                end = cutoff if until is None else until
                past = windows(rows, lookback, horizon, freq=freq, known=known, after=after, until=end, stride=stride)
                fitted = _fitted(str(unique_id), past, alphas, -(-horizon // stride))
            values = fitted.predict(_features(seen, horizon)).reshape(1, horizon)
            tables.append(long_form(seen, {"ridge": values}))
    columns = ["unique_id", "ds", "cutoff", "ridge"]
    found = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=columns)
    return _in_order(found.merge(frame[["unique_id", "ds", "y"]], on=["unique_id", "ds"], how="left"), "ridge")


def pairs(frame: pd.DataFrame, cutoffs: Any) -> pd.DataFrame:
    """``unique_id``, ``cutoff``: the given pairs, or every device of the frame at each of the given stamps.

    Example:
        >>> frame = pd.DataFrame({"unique_id": ["a", "b"], "ds": pd.Timestamp("2024"), "y": 0.0})
        >>> len(pairs(frame, ["2024-01-01", "2024-01-02"]))
        4
    """
    if isinstance(cutoffs, pd.DataFrame):
        found = cutoffs[["unique_id", "cutoff"]].drop_duplicates()
    else:
        stamps = pd.DataFrame({"cutoff": pd.DatetimeIndex(list(cutoffs))})
        found = frame[["unique_id"]].drop_duplicates().merge(stamps, how="cross")
    return found.astype({"cutoff": "datetime64[ns]"}).reset_index(drop=True)


def long_form(seen: Windows, forecasts: dict[str, np.ndarray]) -> pd.DataFrame:
    """Forecasts (N, horizon) by name as rows: ``unique_id``, ``ds``, ``cutoff`` and a column a name."""
    horizon = seen.ds.shape[1]
    rows = {
        "unique_id": pd.Series(np.repeat(seen.unique_id, horizon)).astype("str"),
        "ds": seen.ds.ravel(),
        "cutoff": np.repeat(seen.cutoff, horizon),
    }
    return pd.DataFrame(rows | {name: np.asarray(values, np.float64).ravel() for name, values in forecasts.items()})


def _features(seen: Windows, horizon: int) -> np.ndarray:
    """(N, F): the lookback of y and of the past covariates, and the known covariates of the horizon alone."""
    past = len(seen.channels) - seen.known
    parts = [seen.x[:, :past].reshape(len(seen), -1), seen.x[:, past:, -horizon:].reshape(len(seen), -1)]
    return np.concatenate(parts, axis=1).astype(np.float64)


def _fitted(unique_id: str, past: Windows, alphas: Sequence[float], gap: int) -> Pipeline:
    from sklearn.linear_model import RidgeCV
    from sklearn.model_selection import TimeSeriesSplit
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    least = (_FOLDS + 1) * (gap + 1)
    if len(past) < least:
        raise ValueError(
            f"{unique_id}: ridge has {len(past)} whole windows to learn from and needs {least}; give the device more "
            "history, a shorter lookback or horizon, or leave it out"
        )
    # Neighbouring windows share most of their values: leaving one out would choose no penalty at all.
    folds = TimeSeriesSplit(_FOLDS, gap=gap)
    model = make_pipeline(StandardScaler(), RidgeCV(alphas, cv=folds, scoring="neg_mean_absolute_error"))
    return model.fit(_features(past, past.y.shape[1]), past.y.astype(np.float64))


def _in_order(rows: pd.DataFrame, name: str) -> pd.DataFrame:
    rows = rows.sort_values(["unique_id", "cutoff", "ds"], ignore_index=True)
    return rows[["unique_id", "ds", "cutoff", "y", name]]
