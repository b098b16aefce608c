"""Sensor histories for the tests: a regular device, and what happens to it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd


def device(
    name: str, y: Sequence[float] | np.ndarray | int, *, freq: str = "h", start: str = "2024-01-01", **covariates
):
    """A device in long form; `y` may be a length, and is then noise of its own around ten."""
    if isinstance(y, int):
        seed = np.frombuffer(name.encode(), np.uint8).astype(int)
        y = 10 + np.random.default_rng([*seed]).normal(size=y)
    ds = pd.date_range(start, periods=len(y), freq=freq).astype("datetime64[ns]")
    return pd.DataFrame({"unique_id": name, "ds": ds, "y": np.asarray(y, float), **covariates})


def fleet(*devices: pd.DataFrame) -> pd.DataFrame:
    return pd.concat(devices, ignore_index=True)
