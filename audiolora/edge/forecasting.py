"""History to forecast in NumPy: the windows and the scaling of `audiolora.series`, to the bit, without pandas.

z = (v - location) / scale by window and channel, in float64, kept as float32; the forecast goes back the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

import numpy as np

from audiolora.edge.calendar import CALENDAR, calendar
from audiolora.export.forecast_settings import ForecastSettings

History = np.ndarray | Mapping[str, np.ndarray]
"""y, or values by column."""


def forecast_from(
    settings: ForecastSettings,
    history: History,
    device: str | None,
    run: Callable[[np.ndarray], Any],
    *,
    ends: datetime | str | None = None,
    time_zone: str | None = None,
) -> np.ndarray:
    """The forecast in y's unit; see `Session.forecast`.

    Args:
        settings: of the forecaster.
        history: as there.
        device: as there.
        run: the network, x (N, C, lookback) float32 → (N, horizon) or (N, horizon, Q).
        ends, time_zone: as there.
    """
    if ends is not None:
        history = with_calendar(settings, history, ends, time_zone)
    x, one = window(settings, history)
    location, scale = statistics(settings, x, device)
    z = ((x - location[:, :, None]) / scale[:, :, None]).astype(np.float32)
    y = np.asarray(run(z)).astype(np.float64)
    y = np.sort(y, axis=2) if settings.quantiles else y
    of_y = (-1, *[1] * (y.ndim - 1))
    found: np.ndarray = y * scale[:, 0].reshape(of_y) + location[:, 0].reshape(of_y)
    return found[0] if one else found


def with_calendar(
    settings: ForecastSettings, history: History, ends: datetime | str, time_zone: str | None
) -> dict[str, np.ndarray]:
    """The history with those columns of the calendar that the network reads.

    Raises:
        ValueError: it reads none, no time zone is known, or its step has no fixed length.
    """
    columns = dict(history) if isinstance(history, Mapping) else {"y": history}
    missing = [name for name in CALENDAR if name in settings.known and name not in columns]
    zone = time_zone or settings.time_zone
    if not missing or zone is None or settings.step_s is None:
        why = (
            "this forecaster reads no calendar that is not there already; leave ends out"
            if not missing
            else "the bundle does not say by which zone the devices live; name it (time_zone='Europe/Paris')"
            if zone is None
            else f"a step of {settings.freq} has no fixed length; give the columns {', '.join(missing)} themselves"
        )
        raise ValueError(f"ends={ends!r}: {why}")
    y = np.asarray(columns["y"]) if "y" in columns else np.empty(0)
    found = calendar(ends, y.shape[-1], settings.horizon, settings.step_s, zone)
    whole = (*y.shape[:-1], y.shape[-1] + settings.horizon)
    return columns | {name: np.broadcast_to(found[name], whole) for name in missing}


def window(settings: ForecastSettings, history: History) -> tuple[np.ndarray, bool]:
    """What the network would see, unscaled: (N, C, lookback) float32, and whether it was one series without N.

    A known covariate is shifted: its last ``horizon`` values are the horizon's own.

    Raises:
        ValueError: columns that are missing or unknown, too short, of unequal lengths, or not finite.
    """
    columns = history if isinstance(history, Mapping) else {"y": history}
    if set(columns) != set(settings.channels):
        raise ValueError(
            f"the history must have the columns {', '.join(settings.channels)}, got {', '.join(columns) or 'none'}"
        )
    values = {name: numbers(name, columns[name]) for name in settings.channels}
    steps = values["y"].shape[-1]
    for name, column in values.items():
        wanted = (*values["y"].shape[:-1], steps + (settings.horizon if name in settings.known else 0))
        if steps < settings.lookback:
            least = settings.lookback
            raise ValueError(f"y: {steps} steps, and the network looks back on {least}; give at least {least} steps")
        if column.shape != wanted:
            raise ValueError(
                f"{name}: shape {column.shape}, and {wanted} is needed: y and past covariates up to now, known ones "
                f"{settings.horizon} steps further"
            )
        if not np.isfinite(column[..., -settings.lookback :]).all():
            raise ValueError(f"{name}: the last {settings.lookback} values are not all finite; fill the gap first")
    stacked = [np.atleast_2d(values[name])[:, -settings.lookback :] for name in settings.channels]
    return np.stack(stacked, axis=1).astype(np.float32), values["y"].ndim == 1


def numbers(name: str, column: Any) -> np.ndarray:
    """A column, if it is one of real numbers.

    Raises:
        ValueError: something else: strings, objects, complex numbers, or neither (T,) nor (N, T).
    """
    values = np.asarray(column)
    if values.dtype.kind not in "fiub" or values.ndim not in (1, 2):
        raise ValueError(
            f"{name}: shape {values.shape} of {values.dtype}, and real numbers (T,) or (N, T) are needed; convert them "
            "first: np.asarray(…, float)"
        )
    return values


def statistics(settings: ForecastSettings, x: np.ndarray, device: str | None) -> tuple[np.ndarray, np.ndarray]:
    """Location and scale (N, C) float64 of windows x (N, C, L).

    Raises:
        ValueError: a device that the scaler has not seen, or none where it knows several.
    """
    scaler = settings.scaler
    alone = np.array([name in scaler["unscaled"] for name in settings.channels])
    if scaler["kind"] == "window":
        values = x.astype(np.float64)
        location, spread = values.mean(axis=2), values.std(axis=2)
        floored = np.maximum(spread, scaler["floor"] * np.sqrt(np.square(values).mean(axis=2)))
        scale = np.where(floored > 0, floored, 1.0)
    else:
        pairs = np.array([_of_device(settings, device).get(name, (0.0, 1.0)) for name in settings.channels], float)
        location, scale = (np.tile(pairs[:, i], (len(x), 1)) for i in (0, 1))
    return np.where(alone, 0.0, location), np.where(alone, 1.0, scale)


def _of_device(settings: ForecastSettings, device: str | None) -> Mapping[str, tuple[float, float]]:
    devices = settings.scaler["devices"]
    name = next(iter(devices)) if device is None and len(devices) == 1 else device
    if name is None or name not in devices:
        asked = "no device was named" if name is None else f"{name!r} is none of them"
        raise ValueError(
            f"the scaler knows {', '.join(sorted(devices)) or 'no device'}, and {asked}; name one (device=…)"
        )
    found: Mapping[str, tuple[float, float]] = devices[name]
    scaled = [column for column in settings.channels if column not in settings.scaler["unscaled"]]
    if lacking := [column for column in scaled if column not in found]:
        raise ValueError(f"{name}: the scaler was not fitted on {', '.join(lacking)} of this device; fit it anew")
    return found
