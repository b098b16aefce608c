"""How far a fleet's training is: a bar over devices, and how many stopped, how many lose."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from audiolora.fleet import DeviceHistory

_EVERY_S = 0.5


class FleetBar:
    """A progress bar over devices: done, stopped early, losing (no validation beat the base yet), mean training loss.

    Args:
        devices: of the fleet.
        done: histories of those that are done already, of an interrupted run.
        console: to draw on.

    Example:
        >>> with FleetBar(2, Console(quiet=True)) as bar:
        ...     bar.watch({"a": DeviceHistory(3, status="finished")})
        ...     bar.text()
        '1 done, 0 stopped early, 0 losing'
    """

    def __init__(self, devices: int, console: Console) -> None:
        self.devices, self._seen = devices, dict[str, DeviceHistory]()
        columns = TextColumn("adapters"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}")
        self._bar = Progress(*columns, TimeRemainingColumn(), console=console)
        self._task, self._next = self._bar.add_task("", total=devices), 0.0

    def __enter__(self) -> FleetBar:
        self._bar.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._draw()
        self._bar.__exit__(kind, error, trace)

    def watch(self, history: Mapping[str, DeviceHistory]) -> None:
        """Take note of some devices; the bar is drawn anew twice a second."""
        self._seen.update(history)
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + _EVERY_S
            self._draw()

    def text(self) -> str:
        """What stands beside the bar."""
        seen = list(self._seen.values())
        done = sum(one.status != "training" for one in seen)
        stopped = sum(one.status == "stopped early" for one in seen)
        losing = sum(one.best_step == 0 and len(one.validation) > 1 for one in seen)
        losses = [one.losses[-1] for one in seen if one.losses and np.isfinite(one.losses[-1])]
        loss = f", loss {np.mean(losses):.3f}" if losses else ""
        return f"{done} done, {stopped} stopped early, {losing} losing{loss}"

    def _draw(self) -> None:
        done = sum(one.status != "training" for one in self._seen.values())
        self._bar.update(self._task, completed=done, description=self.text())
