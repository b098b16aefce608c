"""What one device leaves in a run: its forecasts by every model, how each adaptation went, and the adapter it uses.

devices/ID/  adapter/       of the run's method (`Forecaster.save`)
             forecasts.csv  a row a cutoff and step: ds, cutoff, y and a column a model
             device.json    written last: a device that has it is done
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from audiolora.files import write_json, write_text
from audiolora.series.adaptation import Adapted, adapt
from audiolora.series.comparing import compare
from audiolora.series.deployment import Deployment, folder_name
from audiolora.series.forecaster import Forecaster
from audiolora.series.settings import AdaptSettings
from audiolora.series.steps import parse_freq

FROZEN, SHARED = "frozen", "shared "
"""Among the models: the base as it is, and how the name of an adapter begins that all new devices share."""


@dataclass(frozen=True)
class DeviceResult:
    """One device, done.

    Attributes:
        unique_id: the device.
        forecasts: long form: unique_id, ds, cutoff, y and a column a model.
            The column ``shared METHOD`` is the adapter that all new devices share.
        methods: by method: uses (own, shared or base: the best on the validation days), the losses there, the epoch
            that was kept, seconds, and trained (parameters).
    """

    unique_id: str
    forecasts: pd.DataFrame
    methods: Mapping[str, Mapping[str, Any]]

    def with_fallback(self) -> pd.DataFrame:
        """The forecasts with those of what the device goes on with in place of each method's own.

        Example:
            >>> table = pd.DataFrame({"frozen": [1.0], "lora": [2.0]})
            >>> DeviceResult("a", table, {"lora": {"uses": "base"}}).with_fallback()["lora"].tolist()
            [1.0]
        """
        column = {"own": "{}", "shared": SHARED + "{}", "base": FROZEN}
        used = {name: column[facts["uses"]].format(name) for name, facts in self.methods.items()}
        return self.forecasts.assign(**{name: self.forecasts[source] for name, source in used.items()})


def run_device(
    base: Forecaster,
    rows: pd.DataFrame,
    plan: Deployment,
    methods: Mapping[str, Forecaster | None],
    settings: AdaptSettings,
    *,
    keep: str,
    seasonality: int,
    folder: Path,
) -> DeviceResult:
    """Adapt to one device in every way, forecast from the same cutoffs, and write its folder; one that is done is read.

    The cutoffs lie ``horizon + 1`` steps apart, so that they go round the hours of a day.

    Args:
        base: fitted; it is not changed.
        rows: the device's, long form with the base's covariates; nothing before ``plan.history_after`` is looked at.
        plan: the times.
        methods: of `series.methods.METHODS`, each with the forecaster that the devices share and begin from, or None.
        settings: how to train.
        keep: the method whose adapter is kept.
        seasonality: steps a season has.
        folder: of the device.

    Raises:
        ValueError: the device cannot be adapted to or scored; the message begins with its id.
    """
    if (done := read_device(folder)) is not None:
        return done
    unique_id = str(rows["unique_id"].iloc[0])
    rows = rows[(rows["ds"] > plan.history_after) & (rows["ds"] <= plan.scored_until)]
    history = rows[rows["ds"] <= plan.adapted_at]
    step = base.horizon + 1
    steps = int((plan.scored_until - plan.adapted_at) / pd.Timedelta(parse_freq(base.freq)))
    try:
        adapted = {method: adapt(base, history, method, settings, shared=shared) for method, shared in methods.items()}
        others = {method: one.forecaster for method, one in adapted.items()}
        others |= {SHARED + method: shared for method, shared in methods.items() if shared is not None}
        forecasts = compare(
            base.over(base.net, name=FROZEN), rows, seasonality=seasonality, origins=max(1, (steps - 1) // step),
            step=step, start=plan.adapted_at, after=plan.history_after, others=others,
        )  # fmt: skip
    except ValueError as error:
        raise ValueError(f"device {unique_id}: {error}") from error
    facts = {method: method_facts(one) for method, one in adapted.items()}
    write_device(folder, DeviceResult(unique_id, forecasts, facts), adapted[keep])
    return DeviceResult(unique_id, forecasts, facts)


def method_facts(adapted: Adapted) -> dict[str, Any]:
    """What is kept of an adaptation beside its forecasts."""
    trained = sum(p.numel() for p in adapted.forecaster.net.parameters() if p.requires_grad)
    return {name: getattr(adapted, name) for name in ("uses", "losses", "epoch", "seconds")} | {"trained": trained}


def device_folder(run: Path, unique_id: str) -> Path:
    """Where a run keeps a device."""
    return run / "devices" / folder_name(unique_id)


def write_device(folder: Path, result: DeviceResult, adapted: Adapted) -> None:
    """Write a device's folder; `device.json` last."""
    adapted.forecaster.save(folder / "adapter")
    write_text(folder / "forecasts.csv", result.forecasts.to_csv(index=False))
    write_json(folder / "device.json", {"unique_id": result.unique_id, "methods": result.methods})


def read_device(folder: Path) -> DeviceResult | None:
    """What `write_device` wrote, or None if the device is not done."""
    path = folder / "device.json"
    if not path.is_file():
        return None
    facts = json.loads(path.read_text(encoding="utf-8"))
    forecasts = pd.read_csv(folder / "forecasts.csv", dtype={"unique_id": str}, parse_dates=["ds", "cutoff"])
    forecasts = forecasts.astype({"ds": "datetime64[ns]", "cutoff": "datetime64[ns]"})
    return DeviceResult(facts["unique_id"], forecasts, facts["methods"])
