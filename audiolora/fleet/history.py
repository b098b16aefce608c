"""What training did to each device."""

import math
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from rich import box
from rich.console import Console
from rich.table import Table


@dataclass
class DeviceHistory:
    """One device's training.

    Args:
        steps: optimiser steps taken.
        losses: the training loss of each.
        validation: (step, loss) of each validation; step 0 is the start.
        best_step, best_loss: of the best validation; with validation these are the weights that stay.
        status: ``training``, ``finished``, ``stopped early``, or ``diverged`` and why.
    """

    steps: int = 0
    losses: "array[float]" = field(default_factory=lambda: array("d"))
    validation: list[tuple[int, float]] = field(default_factory=list)
    best_step: int = 0
    best_loss: float = math.nan
    status: str = "training"

    @property
    def diverged(self) -> bool:
        """Whether its loss or gradient was not finite."""
        return self.status.startswith("diverged")

    @property
    def gain(self) -> float:
        """By how much the best validation loss is below the start's, as a share of it; NaN without one."""
        start = self.validation[0][1] if self.validation else math.nan
        return 1 - self.best_loss / start if start else math.nan


class History(Mapping[str, DeviceHistory]):
    """Device → its history; printed, a table of the fleet.

    Example:
        >>> history = History({"meter 7": DeviceHistory(3, array("d", [1.0, 0.5, 0.4]), status="finished")})
        >>> history["meter 7"].losses[-1], str(history).splitlines()[-1].split()[:3]
        (0.4, ['meter', '7', '3'])
    """

    def __init__(self, devices: Mapping[str, DeviceHistory]) -> None:
        self._devices = dict(devices)

    def __getitem__(self, id: str) -> DeviceHistory:
        return self._devices[id]

    def __iter__(self) -> Iterator[str]:
        return iter(self._devices)

    def __len__(self) -> int:
        return len(self._devices)

    def table(self) -> Table:
        """One row a device."""
        table = Table(box=box.SIMPLE, show_edge=False)
        table.add_column("device")
        for heading in ("steps", "last loss", "best validation", "at step", "gain"):
            table.add_column(heading, justify="right")
        table.add_column("status")
        for id, device in self._devices.items():
            checked = bool(device.validation)
            table.add_row(
                id,
                str(device.steps),
                f"{device.losses[-1]:.4g}" if device.losses else "–",
                f"{device.best_loss:.4g}" if checked else "–",
                str(device.best_step) if checked else "–",
                f"{device.gain:+.1%}" if checked else "–",
                device.status,
            )
        return table

    def __str__(self) -> str:
        console = Console(width=120, color_system=None)
        with console.capture() as captured:
            console.print(self.table())
        return captured.get().rstrip("\n")
