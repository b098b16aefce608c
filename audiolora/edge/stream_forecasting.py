"""A forecaster's stream: values in, at each step the forecast from there, in the unit of y.

Scaling must not change from step to step, or what a stream remembers would be of another scale than what comes: so it
is by device (``standard``, ``robust``), and a scaler by window is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime

import numpy as np

from audiolora.edge.forecasting import History, numbers, statistics, with_calendar
from audiolora.export.forecast_settings import ForecastSettings


def forecast_steps(
    settings: ForecastSettings,
    values: History,
    device: str | None,
    push: Callable[[np.ndarray], np.ndarray],
    *,
    ends: datetime | str | None = None,
    time_zone: str | None = None,
) -> np.ndarray:
    """The forecast at each step of a stream's next chunk, in y's unit; see `edge.streaming.Stream.forecast`.

    Args:
        settings: of the forecaster.
        values, device, ends, time_zone: as there.
        push: the stream, x (N, C, n) float32 → (N, horizon · Q, n).
    """
    if settings.scaler["kind"] == "window":
        raise ValueError(
            "the scaler is 'window': it scales each window by itself, and a stream has none; take session.forecast, or "
            "an adapter whose scaler is 'standard' or 'robust'"
        )
    columns = dict(values) if isinstance(values, Mapping) else {"y": values}
    if ends is not None:
        added = with_calendar(settings, columns, ends, time_zone)
        columns = {name: value if name in columns else value[..., settings.horizon :] for name, value in added.items()}
    x, one = _stacked(settings, columns)
    location, scale = statistics(settings, x, device)
    y = steps(settings, push(((x - location[:, :, None]) / scale[:, :, None]).astype(np.float32))).astype(np.float64)
    y = np.sort(y, axis=3) if settings.quantiles else y
    of_y = (-1, *[1] * (y.ndim - 1))
    found: np.ndarray = y * scale[:, 0].reshape(of_y) + location[:, 0].reshape(of_y)
    return found[0] if one else found


def steps(settings: ForecastSettings, y: np.ndarray) -> np.ndarray:
    """A streaming graph's output (N, horizon · Q, n) as (N, n, horizon), or (N, n, horizon, Q) with quantiles."""
    levels = (len(settings.quantiles),) if settings.quantiles else ()
    return y.swapaxes(1, 2).reshape(len(y), y.shape[2], settings.horizon, *levels)


def last_step(settings: ForecastSettings, y: np.ndarray) -> np.ndarray:
    """A streaming graph's forecast after all of its input: (N, horizon), or (N, horizon, Q)."""
    return steps(settings, y)[:, -1]


def _stacked(settings: ForecastSettings, columns: Mapping[str, np.ndarray]) -> tuple[np.ndarray, bool]:
    """(N, C, n) float32, and whether it was one series without N."""
    if set(columns) != set(settings.channels):
        raise ValueError(
            f"the values must have the columns {', '.join(settings.channels)}, got {', '.join(columns) or 'none'}"
        )
    arrays = {name: numbers(name, columns[name]) for name in settings.channels}
    shape = arrays["y"].shape
    for name, column in arrays.items():
        if column.shape != shape or not np.isfinite(column).all():
            raise ValueError(f"{name}: shape {column.shape}, and {shape} is needed, n or (N, n), all of it finite")
    stacked = np.stack([np.atleast_2d(column) for column in arrays.values()], axis=1)
    return stacked.astype(np.float32), len(shape) == 1
