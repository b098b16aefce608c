"""What a comparison is about: a task is made once, and opened in every process that trains."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from audiolora.comparison.trials import Scores


class OpenTask(Protocol):
    """A task in a process: its base and its data, loaded.

    Attributes:
        head: names of the modules that make the last layer.
        unit: of the error rate, ``"WER %"``.
        steps: optimiser steps of a training.
    """

    head: Sequence[str]
    unit: str
    steps: int

    def base(self) -> nn.Module:
        """The trained base, to be changed: a new one at each call."""

    def fit(self, net: nn.Module, learning_rate: float, seed: int, folder: Path) -> None:
        """Train what requires a gradient; the same number of steps for every way.

        Args:
            net: from `base`, prepared; afterwards it holds the epoch that was best on the development split.
            learning_rate: peak.
            seed: of the order of the data.
            folder: for checkpoints; the caller removes it.
        """

    def score(self, net: nn.Module, part: str) -> Scores:
        """Errors on the ``"dev"`` or the ``"test"`` split."""

    def loss(self, net: nn.Module) -> torch.Tensor:
        """Of one fixed batch, to measure what a step costs."""


class Task(Protocol):
    """The settings of a task: light, and can be sent to another process."""

    def network(self) -> nn.Module:
        """One of the base's shape, before anything is prepared: it tells which ways the base can take."""

    def prepare(self, folder: Path) -> None:
        """Whatever is done once for all ways (fetch, check, train the base); goes on where it was interrupted.

        Raises:
            ValueError: data or model that cannot be used; nothing was trained yet.
        """

    def open(self, folder: Path) -> OpenTask:
        """After `prepare`, in any process that sees the folder."""
