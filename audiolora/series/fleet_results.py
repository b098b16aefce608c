"""What came of each device of a fleet: gained, lost, fell back to the base, left out; measured behind validation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from audiolora.fleet import DeviceHistory
from audiolora.series.baselines import ridge, seasonal_naive
from audiolora.series.checks import Findings
from audiolora.series.fleet_forecaster import FleetForecaster
from audiolora.series.fleet_preparation import Prepared
from audiolora.series.fleet_times import FleetTimes, device_groups, history
from audiolora.series.forecaster import Forecaster
from audiolora.series.metrics import score, summarise
from audiolora.series.steps import parse_freq
from audiolora.series.windows import windows

OUTCOMES = ("gained", "lost", "fell back", "not scored", "left out")
"""By the scores on the test part; a device that fell back forecasts as the base does."""

MODELS = ["zero_shot", "adapted", "seasonal_naive", "ridge"]
_DEVICES_AT_ONCE = 32
_RIDGE_FOLDS = 4  # what series.baselines.ridge needs: so many times (horizon + 1) windows


@dataclass(frozen=True)
class FleetScores:
    """Scores on the test part.

    Attributes:
        devices: a row a device of the file: unique_id, outcome, why, status, steps, val_base, val_adapted (mean scaled
            losses on the validation windows), zero_shot, adapted, seasonal_naive, ridge (MASE), change (adapted
            relative to zero_shot).
        totals: of `metrics.summarise` against zero_shot, over all scored devices.
        unseen: the same over those that the base never saw; empty if there are none, or none are known.
        kept: the same over those that kept their adapter; empty if there are none.
    """

    devices: pd.DataFrame
    totals: pd.DataFrame
    unseen: pd.DataFrame
    kept: pd.DataFrame

    def count(self, outcome: str) -> int:
        """How many devices came to this."""
        return int((self.devices["outcome"] == outcome).sum())


def forecasts(
    base: Forecaster, adapted: FleetForecaster, frame: pd.DataFrame, times: FleetTimes, seasonality: int, *,
    with_ridge: bool = True, stride: int = 1,
) -> pd.DataFrame:  # fmt: skip
    """Forecasts of every device behind ``val_until``, horizon after horizon: a column a model beside y.

    Args:
        base, adapted: over one network.
        frame: long form, the devices that were trained.
        times: when; ridge learns from the history and the validation part.
        seasonality: steps of a season; ``lookback`` must hold one that ends a horizon.
        with_ridge: whether to fit one a device; a device with too few windows for it has NaN there.
        stride: of ridge's windows.

    Returns:
        DataFrame ``unique_id``, ``ds``, ``cutoff``, ``y``, ``zero_shot``, ``adapted``, ``seasonal_naive``, ``ridge``;
        without rows for cutoffs at which a device's lookback has a gap.
    """
    step = parse_freq(base.freq)
    begin = times.val_until - (base.lookback + 1) * step
    tail = frame[frame["ds"] > begin]
    origins = _origins(frame, base, times)
    rolling: dict[str, Any] = {"origins": origins, "start": times.val_until, "step": base.horizon}
    found = base.backtest(tail, **rolling).rename(columns={base.name: "zero_shot"})
    mine = tail[tail["unique_id"].isin(adapted.fleet.ids)]
    found["adapted"] = found["zero_shot"]
    keys = ["unique_id", "ds", "cutoff"]
    if len(mine):
        own = adapted.backtest(mine, **rolling)[[*keys, adapted.name]].rename(columns={adapted.name: "own"})
        found = found.merge(own, on=keys, how="left")
        found["adapted"] = found.pop("own").fillna(found["zero_shot"])
    found = found[[*keys, "y", "zero_shot", "adapted"]]
    cutoffs = found[["unique_id", "cutoff"]].drop_duplicates()
    naive = seasonal_naive(tail[["unique_id", "ds", "y"]], cutoffs, base.horizon, seasonality, freq=base.freq)
    found = found.merge(naive.drop(columns="y"), on=keys, how="left")
    if not with_ridge:
        return found
    linear = _ridge(base, history(frame, times), cutoffs, times, stride)
    return found.merge(linear, on=keys, how="left")


def results(
    found: pd.DataFrame, prepared: Prepared, histories: Mapping[str, DeviceHistory], kept: Sequence[str]
) -> FleetScores:
    """Scores by device, who gained and who lost, and totals with intervals.

    Args:
        found: from `forecasts`.
        prepared: the fleet; its findings say who was left out.
        histories: device → its training.
        kept: devices that go on with their adapter.
    """
    findings, learned = prepared.findings, set(prepared.learned)
    scores = _scores(found, history(prepared.frame, prepared.times), prepared.seasonality)
    mase = scores.pivot(index="unique_id", columns="model", values="mase")
    rows = [_row(name, one, mase, name in set(kept)) for name, one in histories.items()]
    rows += [_left_out(name, findings) for name in findings.bad_ids]
    devices = pd.DataFrame(rows, columns=["unique_id", "outcome", "why", "status", "steps", "val_base", "val_adapted"])
    devices = devices.merge(mase.reindex(columns=MODELS).reset_index(), on="unique_id", how="left")
    devices["change"] = devices["adapted"] / devices["zero_shot"] - 1
    unseen = [name for name in mase.index if learned and name not in learned]
    return FleetScores(devices, *(_totals(scores, ids) for ids in (list(mase.index), unseen, kept)))


def _origins(frame: pd.DataFrame, base: Forecaster, times: FleetTimes) -> int:
    step, count = parse_freq(base.freq), 0
    while times.val_until + (count + 1) * base.horizon * step <= times.test_until:
        count += 1
    if not count:
        raise ValueError(
            f"the test part, from {times.val_until} to {times.test_until}, is shorter than the horizon of "
            f"{base.horizon} steps; take a longer one"
        )
    return count


def _ridge(base: Forecaster, seen: pd.DataFrame, cutoffs: pd.DataFrame, times: FleetTimes, stride: int) -> pd.DataFrame:
    """Ridge of the devices that have enough windows for it, a few devices at a time."""
    least, tables = _RIDGE_FOLDS * (-(-base.horizon // stride) + 1), []
    spans = {"freq": base.freq, "known": base.known, "after": times.history_after, "until": times.val_until}
    for some in device_groups(seen, list(cutoffs["unique_id"].unique()), _DEVICES_AT_ONCE):
        rows = some[["unique_id", "ds", *base.channels]]
        counts = windows(rows, base.lookback, base.horizon, stride=stride, **spans).counts
        enough = counts.loc[counts["windows"] >= least, "unique_id"]
        wanted = cutoffs[cutoffs["unique_id"].isin(enough)]
        if len(wanted):
            rows = rows[rows["unique_id"].isin(enough)]
            found = ridge(rows, wanted, base.horizon, base.lookback, stride=stride, **spans)
            tables.append(found.drop(columns="y"))
    columns = ["unique_id", "ds", "cutoff", "ridge"]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=columns)


def _scores(found: pd.DataFrame, seen: pd.DataFrame, seasonality: int) -> pd.DataFrame:
    """`metrics.score`, also where some devices have no ridge."""
    found = found.dropna(subset=["y"])
    past = seen[["unique_id", "ds", "y"]]
    if "ridge" not in found:
        return score(found, past, seasonality=seasonality)
    linear = found["ridge"].notna()
    scored = [score(found.drop(columns="ridge"), past, seasonality=seasonality)]
    if linear.any():
        columns = ["unique_id", "ds", "cutoff", "y", "ridge"]
        scored.append(score(found.loc[linear, columns], past, seasonality=seasonality))
    return pd.concat(scored, ignore_index=True)


def _row(name: str, one: DeviceHistory, mase: pd.DataFrame, has_adapter: bool) -> dict[str, Any]:
    start = one.validation[0][1] if one.validation else np.nan
    known = name in mase.index and np.isfinite(mase.loc[name, ["zero_shot", "adapted"]]).all()
    outcome, why = "fell back", "no adapter beat the base on its validation windows"
    if has_adapter and known:
        better = mase.at[name, "adapted"] < mase.at[name, "zero_shot"]
        outcome, why = ("gained", "") if better else ("lost", "better on its validation windows, not behind them")
    elif has_adapter:
        outcome, why = "not scored", "no whole lookback with a measurement behind it in the test part"
    elif one.diverged:
        why = one.status
    return {"unique_id": name, "outcome": outcome, "why": why, "status": one.status, "steps": one.steps,
            "val_base": start, "val_adapted": one.best_loss}  # fmt: skip


def _left_out(name: str, findings: Findings) -> dict[str, Any]:
    bad = findings.table[findings.table["bad"] & findings.table["unique_id"].isin([name, "(all devices)"])]
    why = "; ".join(f"{one.column}: {one.problem}: {one.detail}" for one in bad.itertuples())
    return {"unique_id": name, "outcome": "left out", "why": why, "status": "", "steps": 0}


def _totals(scores: pd.DataFrame, ids: Sequence[str]) -> pd.DataFrame:
    some = scores[scores["unique_id"].isin(list(ids))]
    if some.empty:
        return pd.DataFrame()
    found = summarise(some, reference="zero_shot")
    return found[found["metric"] == "mase"].reset_index(drop=True)
