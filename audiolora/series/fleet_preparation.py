"""From a file to a fleet that can be trained: read, checked, bad devices left out by name, times, a base."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from audiolora.series.bases import load_base, new_base, pretrain_base
from audiolora.series.calendar import CALENDAR, with_calendar
from audiolora.series.checks import Findings, check, keep_good
from audiolora.series.fleet_settings import FleetData, FleetSettings, PretrainSettings
from audiolora.series.fleet_times import FleetTimes, fleet_times, history, with_more, without_windows
from audiolora.series.fleets import SensorFleet, open_fleet
from audiolora.series.forecaster import Forecaster


@dataclass(frozen=True)
class Prepared:
    """A fleet that can be trained.

    Attributes:
        frame: long form, the good devices, with the calendar if asked for.
        findings: of the whole file; ``bad_ids`` were left out.
        times: when what happens.
        base: the one that was given, or a new one to pretrain.
        given: whether it was given.
        learned: devices that a new base learns from; () for one that was given.
        seasonality: steps of a season.
        source: what the data are and their licence, where it is known.
    """

    frame: pd.DataFrame
    findings: Findings
    times: FleetTimes
    base: Forecaster
    given: bool
    learned: tuple[str, ...]
    seasonality: int
    source: tuple[str, ...]

    @property
    def ids(self) -> list[str]:
        """The good devices, in order."""
        return list(dict.fromkeys(self.frame["unique_id"]))

    def chunks(self, size: int) -> dict[str, pd.DataFrame]:
        """The devices' rows, ``size`` devices a chunk, by the chunk's name."""
        order, by_device = self.ids, dict(tuple(history(self.frame, self.times).groupby("unique_id", sort=False)))
        parts = [order[begin : begin + size] for begin in range(0, len(order), size)]
        return {f"chunk-{i:04d}": pd.concat([by_device[name] for name in part]) for i, part in enumerate(parts)}


def prepare(
    data: str, base: Path | None, settings: FleetData, pretrain: PretrainSettings, training: FleetSettings
) -> Prepared:
    """Read and check a fleet; a bad device is left out and named in the findings, the others go on.

    Args:
        data: a CSV or Parquet file, long or wide, or a fleet of `series.fleets`.
        base: a folder for `load_base`; None to make a new base.
        settings: what is read, and when what happens.
        pretrain: of a new base.
        training: its stride and seed are used.

    Raises:
        ValueError: no device is left, or a setting that does not go with the base or the data.
    """
    found = None if base is None else load_base(base)
    fleet = _opened(data, settings, found)
    step, season = fleet.freq, fleet.seasonality
    frame = _some(fleet.frame, settings.devices, training.seed)
    accept = list(settings.accept)
    lookback, horizon = _spans(settings, found, season)
    known = _own(settings, found)[1]
    findings = check(frame, freq=step, lookback=lookback, horizon=horizon, accept=accept, known=known)
    good = keep_good(frame, findings)
    forecaster = found or _new(good, settings, pretrain, training.seed, (lookback, horizon, step))
    if set(forecaster.known) & set(CALENDAR):
        good = with_calendar(good, time_zone=settings.time_zone or "UTC")
    times, good, findings = _timed(good, findings, forecaster, settings, training.stride)
    learned = () if found else _drawn(list(dict.fromkeys(good["unique_id"])), pretrain.pretrain_share, training.seed)
    source = (f"Data: {fleet.source}; {fleet.what}", f"Licence: {fleet.licence}")
    return Prepared(good, findings, times, forecaster, found is not None, learned, season, source)


def trained_base(prepared: Prepared, pretrain: PretrainSettings, seed: int, *, out: Path, quiet: bool) -> Forecaster:
    """The base of a prepared fleet: a new one learns from its devices up to ``train_until``; scaled for all devices."""
    base, times = prepared.base, prepared.times
    if not prepared.given:
        pretrain_base(
            base, prepared.frame, prepared.learned, until=times.train_until, out=out, quiet=quiet, seed=seed,
            epochs=pretrain.pretrain_epochs, lr=pretrain.pretrain_lr, stride=pretrain.pretrain_stride, patience=3,
        )  # fmt: skip
    base.net.requires_grad_(False)
    columns = ["unique_id", "ds", *base.channels]
    base.scaler = base.scaler.fit(history(prepared.frame, times)[columns], until=times.train_until)
    return base


def _timed(
    good: pd.DataFrame, findings: Findings, base: Forecaster, settings: FleetData, stride: int
) -> tuple[FleetTimes, pd.DataFrame, Findings]:
    """The times, and the devices that have windows in every part of them; those left out do not move the times."""
    while True:
        times = fleet_times(good, history=settings.history, val=settings.val, test=settings.test)
        lacking = without_windows(base, good, times, stride=stride)
        if lacking.empty:
            return times, good, findings
        findings = with_more(findings, lacking)
        good = keep_good(good, findings)


def _opened(data: str, settings: FleetData, base: Forecaster | None) -> SensorFleet:
    """The fleet, with the covariates that are asked for and no others."""
    past, known = _own(settings, base)
    wanted = {"covariates": [*past, *known], "time_zone": settings.time_zone}
    step = settings.freq or (None if base is None else base.freq)
    fleet = open_fleet(data, freq=step, seasonality=settings.seasonality, columns=wanted)
    return replace(fleet, frame=fleet.frame[["unique_id", "ds", "y", *past, *known]])


def _own(settings: FleetData, base: Forecaster | None) -> tuple[list[str], list[str]]:
    """Past and known covariates of the file itself."""
    past, known = (settings.past, settings.known) if base is None else (base.past, base.known)
    return list(past), [name for name in known if name not in CALENDAR]


def _some(frame: pd.DataFrame, devices: int | None, seed: int) -> pd.DataFrame:
    ids = list(dict.fromkeys(frame["unique_id"]))
    if devices is None or devices >= len(ids):
        return frame
    if devices < 1:
        raise ValueError(f"devices must be at least 1, got {devices}")
    drawn = np.random.default_rng(seed).permutation(ids)[:devices]
    return frame[frame["unique_id"].isin(drawn)].reset_index(drop=True)


def _spans(settings: FleetData, base: Forecaster | None, season: int) -> tuple[int, int]:
    wanted = {"lookback": settings.lookback, "horizon": settings.horizon, "freq": settings.freq}
    if base is not None:
        wrong = [f"{k} is {getattr(base, k)!r} there, {v!r} here" for k, v in wanted.items()
                 if v is not None and v != getattr(base, k)]  # fmt: skip
        if wrong:
            raise ValueError(f"the base is another: {'; '.join(wrong)}; leave these away, they are the base's")
        return base.lookback, base.horizon
    horizon = settings.horizon or season
    lookback = settings.lookback or 2 * season
    if lookback < (least := season * -(-horizon // season)):
        raise ValueError(
            f"lookback={lookback} holds less than the {least} steps that the seasonal forecast looks back; take more, "
            "or a shorter horizon or seasonality"
        )
    return lookback, horizon


def _new(
    frame: pd.DataFrame, settings: FleetData, pretrain: PretrainSettings, seed: int, spans: tuple[int, int, Any]
) -> Forecaster:
    lookback, horizon, step = spans
    known = [*settings.known, *(CALENDAR if settings.calendar else ())]
    net = new_base(1 + len(settings.past) + len(known), horizon, width=pretrain.width, seed=seed)
    return Forecaster(net, lookback, horizon, freq=step, known=known, past=settings.past)


def _drawn(ids: list[str], share: float, seed: int) -> tuple[str, ...]:
    count = max(1, round(share * len(ids)))
    drawn = set(np.random.default_rng(seed).permutation(ids)[:count].tolist())
    return tuple(name for name in ids if name in drawn)
