"""A base adapted to devices from a little history, and whether that was worth it on each device's own validation."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from audiolora.series.forecaster import Forecaster
from audiolora.series.methods import LR_FACTOR, prepared
from audiolora.series.settings import AdaptSettings


@dataclass(frozen=True)
class Adapted:
    """A forecaster and how it did on the last days of the history that it was adapted to.

    Attributes:
        forecaster: over its own copy of the network.
        epoch: the one that was kept.
        losses: mean loss of scaled forecasts on the validation days: of `"own"`, this forecaster, of the `"base"`, and
            of the `"shared"` one where it began there.
        seconds: wall time of the training.
    """

    forecaster: Forecaster
    epoch: int
    losses: Mapping[str, float]
    seconds: float

    @property
    def uses(self) -> str:
        """What the device should go on with: the best on its validation days, the simplest where they are equal."""
        return min(("base", "shared", "own"), key=lambda name: self.losses.get(name, float("inf")))


def adapt(
    base: Forecaster,
    history: pd.DataFrame,
    method: str,
    settings: AdaptSettings = AdaptSettings(),  # noqa: B008  frozen
    *,
    shared: Forecaster | None = None,
    out: Path | None = None,
) -> Adapted:
    """Train what `method` trains on `history`, and compare it with what it began from on the last of its days.

    A device has little history, and much of what is new about it is new about its fleet. So it pays to adapt once to
    all devices together, and to let each begin from there: what it learns of its own is then a small step.

    Args:
        base: fitted, without adapters; it is not changed.
        history: long form, one device, or several that are to share one adapter; its last ``val_days`` are for
            validation.
        method: one of `series.methods.METHODS`.
        settings: how; a device that begins from `shared` takes ``own_epochs`` at a third of the learning rate.
        shared: begin at this forecaster, adapted by the same method, and not at the base.
        out: a folder for checkpoints.

    Returns:
        The forecaster and the validation losses.

    Raises:
        ValueError: too little history for a window to train on and one to validate by.

    Example:
        >>> shared = adapt(base, histories, "lora+head+bias").forecaster  # doctest: +SKIP
        >>> adapted = adapt(base, history, "lora+head+bias", shared=shared)  # doctest: +SKIP
        >>> adapted.uses  # doctest: +SKIP
        'own'
    """
    own = base.over(prepared(base.net, method, r=settings.r, seed=settings.seed))
    if shared is not None:
        own.net.load_state_dict(shared.net.state_dict())
    until = history.loc[history["y"].notna(), "ds"].max()
    val = pd.Timedelta(days=settings.val_days)
    lr = settings.lr * LR_FACTOR[method]
    fit: dict[str, Any] = {name: getattr(settings, name) for name in ("batch_size", "seed", "patience", "toward_base")}
    fit |= {"epochs": settings.epochs, "lr": lr} if shared is None else {"epochs": settings.own_epochs, "lr": lr / 3}
    began = time.monotonic()
    epochs = own.fit(history, until=until, val=val, stride=settings.stride, out=out, quiet=True, **fit)
    seconds = time.monotonic() - began
    rivals = {"own": own, "base": base} | ({} if shared is None else {"shared": shared})
    losses = {name: one.validation_loss(history, after=until - val, until=until) for name, one in rivals.items()}
    return Adapted(own, int(epochs.loc[epochs["best"], "epoch"].iloc[0]), losses, seconds)
