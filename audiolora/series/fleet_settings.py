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
