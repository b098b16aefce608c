"""What the training of a fleet's adapters is set to; light to import, so that ``--help`` is quick."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class FleetSettings:
    """How each device's adapter is trained.

    Args:
        r: rank of the adapter in every convolution.
        bias: a bias of the device's own beside each adapted convolution that has one.
        head: a copy of the last layer of the device's own.
        epochs: passes over a device's windows, at most.
        lr: AdamW's learning rate.
        batch_size: windows a device and step.
        stride: steps from one window to the next; neighbouring ones hardly differ.
        patience: epochs without a lower validation loss before a device stops.
        pull: pulls the trained weights toward their start, the base: adds pull · ‖θ - θ_start‖² to the loss.
        least_gain: a device keeps the base unless its adapter's validation loss is lower by this share, in [0, 1).
        chunk: devices trained together; it bounds the memory and is what the engines hand out. An adapter does not
            depend on who is in its chunk but for rounding.
        seed: of the base, of the adapters' start and of the order of the windows.

    Raises:
        ValueError: a number outside its range.
    """

    r: int = 1
    bias: bool = True
    head: bool = True
    epochs: int = 20
    lr: float = 2e-3
    batch_size: int = 32
    stride: int = 4
    patience: int = 4
    pull: float = 0.0
    least_gain: float = 0.0
    chunk: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("r", "epochs", "batch_size", "stride", "patience", "chunk"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.lr < math.inf:
            raise ValueError(f"lr must be a positive number, got {self.lr}; try 2e-3")
        if not 0 <= self.pull < math.inf:
            raise ValueError(f"pull must be at least 0, got {self.pull}; try 1e-3")
        if not 0 <= self.least_gain < 1:
            raise ValueError(f"least_gain is a share in [0, 1), got {self.least_gain}; try 0.01")
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0, got {self.seed}")


@dataclass(frozen=True)
class FleetData:
    """What is read of the file, and when what happens.

    Args:
        freq: the step, such as h or 15min; by default the base's, or the most frequent difference between stamps.
        lookback: steps that are seen; by default the base's, or two seasons.
        horizon: steps to forecast; by default the base's, or one season.
        seasonality: steps of a season; by default those of a day.
        history: how much time the adapters learn from; all there is before the validation part by default.
        val: the time that stops each device's training and decides whether its adapter is used.
        test: the last part of the time, on which the table is measured.
        past: columns of covariates that are known up to the cutoff.
        known: columns of covariates whose future is known.
        calendar: add hour and weekday as known covariates; with --base as the base has it.
        time_zone: zone of stamps without an offset, and of the calendar, such as Europe/Paris.
        accept: findings that leave no device out here, such as unit_jump.
        devices: take this many devices of the file, drawn by the seed; all by default.
    """

    freq: str | None = None
    lookback: int | None = None
    horizon: int | None = None
    seasonality: int | None = None
    history: str | None = None
    val: str = "14D"
    test: str = "14D"
    past: tuple[str, ...] = ()
    known: tuple[str, ...] = ()
    calendar: bool = True
    time_zone: str | None = None
    accept: tuple[str, ...] = ()
    devices: int | None = None


@dataclass(frozen=True)
class PretrainSettings:
    """The base that is trained here where none is given.

    Args:
        pretrain_share: of the devices that it learns from, in (0, 1].
        pretrain_epochs: passes over their windows, at most.
        pretrain_lr: peak learning rate.
        pretrain_stride: steps from one window to the next.
        width: channels of its convolutions.

    Raises:
        ValueError: a number outside its range.
    """

    pretrain_share: float = 0.34
    pretrain_epochs: int = 6
    pretrain_lr: float = 2e-3
    pretrain_stride: int = 8
    width: int = 32

    def __post_init__(self) -> None:
        if not 0 < self.pretrain_share <= 1:
            raise ValueError(f"pretrain_share must lie in (0, 1], got {self.pretrain_share}")
        for name in ("pretrain_epochs", "pretrain_stride", "width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.pretrain_lr < math.inf:
            raise ValueError(f"pretrain_lr must be a positive number, got {self.pretrain_lr}")
