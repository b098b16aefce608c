"""What the sensor task of a comparison is set to; light to import, so that ``--help`` is quick."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class FleetSpan:
    """How much of a fleet is used, and what its forecaster is.

    Args:
        unseen: for sensor, devices that the base never sees.
        history_days: for sensor, what each of them has measured to be adapted by.
        test_days: for sensor, how long forecasts are scored behind that.
        val_days: for sensor, the last days of the history, which choose the epoch and the learning rate.
        lookback: for sensor, steps that the forecaster sees.
        horizon: for sensor, steps that it forecasts.
        channels: for sensor, width of its convolutions.
        base_epochs: for sensor, passes over the devices that the base learns from.
        stride: for sensor, steps from one training window to the next.

    Raises:
        ValueError: a number out of its range.
    """

    unseen: int = 6
    history_days: float = 28
    test_days: float = 28
    val_days: float = 7
    lookback: int = 168
    horizon: int = 24
    channels: int = 32
    base_epochs: int = 5
    stride: int = 3

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise ValueError(f"{name} must be positive, got {value}")
