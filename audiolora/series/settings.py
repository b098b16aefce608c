"""What a run of forecasters is set to; light to import, so that ``--help`` is quick."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class FileSettings:
    """How a file of sensor histories is read.

    Args:
        id_column: column that names the device.
        time_column: column with the stamps.
        target_column: column with the measurements.
        time_zone: zone the devices live by, for hour and weekday as inputs, such as Europe/Paris.
        drop_bad: leave devices out that cannot be used, each named with its reason, instead of stopping.
    """

    id_column: str = "unique_id"
    time_column: str = "ds"
    target_column: str = "y"
    time_zone: str = "UTC"
    drop_bad: bool = False

    @property
    def columns(self) -> dict[str, str]:
        """As `frames.read` takes them."""
        return {"id_col": self.id_column, "time_col": self.time_column, "target_col": self.target_column}


@dataclass(frozen=True)
class BaseSettings:
    """The base, and how it is trained.

    Args:
        lookback: steps it sees.
        horizon: steps it forecasts.
        channels: width of its convolutions.
        base_epochs: passes over the windows of the devices it learns from.
        base_lr: peak learning rate.
        base_stride: steps from one of these windows to the next.
        base_val: how much of their time, at its end, chooses the epoch: a fraction, or a timedelta such as 28D.

    Raises:
        ValueError: a number out of its range.
    """

    lookback: int = 168
    horizon: int = 24
    channels: int = 32
    base_epochs: int = 5
    base_lr: float = 2e-3
    base_stride: int = 6
    base_val: float | str = "28D"

    def __post_init__(self) -> None:
        for name in ("lookback", "horizon", "channels", "base_epochs", "base_stride"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.base_lr < float("inf"):
            raise ValueError(f"base_lr must be a positive number, got {self.base_lr}; try 2e-3")


@dataclass(frozen=True)
class AdaptSettings:
    """How each device is adapted.

    Args:
        r: rank of the adapters.
        start: fleet (one adapter for all new devices first, each begins from there) or base (each from nothing).
        lr: peak learning rate of lora+head+bias; the other methods take a multiple of it (methods.LR_FACTOR).
        epochs: passes over the windows of a device, or of all together, at most.
        own_epochs: passes of a device that begins from the fleet's adapter, at a third of the learning rate.
        stride: steps from one training window to the next; neighbouring windows hardly differ.
        batch_size: windows an optimiser step.
        patience: epochs without a lower validation loss before a device stops.
        toward_base: pull of the trained weights toward their start (L2-SP).
        val_days: the last days of the history, which choose the epoch and decide whether the adapter is used at all.
        seed: of the order of the windows, the draw of the devices and every start.

    Raises:
        ValueError: a number out of its range.
    """

    r: int = 4
    start: Literal["fleet", "base"] = "fleet"
    lr: float = 6e-3
    epochs: int = 16
    own_epochs: int = 6
    stride: int = 3
    batch_size: int = 64
    patience: int = 4
    toward_base: float = 0.0
    val_days: float = 7
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("r", "epochs", "own_epochs", "stride", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("lr", "val_days"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be a positive number, got {getattr(self, name)}")
