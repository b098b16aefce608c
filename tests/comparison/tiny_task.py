"""A task that trains in no time: a convolution learns to delay noise; the base delays by one step less."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from audiolora.comparison.trials import Scores
from audiolora.diverging import DivergedError


@dataclass(frozen=True)
class TinyTask:
    steps: int = 20
    fails: str = ""
    diverges: tuple[tuple[float, int], ...] = ()

    def prepare(self, folder: Path) -> None:
        (folder / "prepared").touch()

    def open(self, folder: Path) -> OpenTinyTask:
        assert (folder / "prepared").exists()
        return OpenTinyTask(self, folder)


class OpenTinyTask:
    head: Sequence[str] = ("1",)
    unit = "MSE"

    def __init__(self, task: TinyTask, folder: Path) -> None:
        self.task, self.log = task, folder / "fits.log"
        self.steps = task.steps
        self.x = torch.randn(24, 1, 40, generator=torch.Generator().manual_seed(0))
        self.y = F.pad(self.x, (2, 0))[..., :-2]

    def base(self) -> nn.Module:
        torch.manual_seed(1)
        net = nn.Sequential(nn.Conv1d(1, 4, 5, padding=2), nn.Conv1d(4, 1, 1))
        return net.requires_grad_(False)

    def fit(self, net: nn.Module, learning_rate: float, seed: int, folder: Path) -> None:
        if self.task.fails:
            raise ValueError(self.task.fails)
        if (learning_rate, seed) in self.task.diverges:
            raise DivergedError(f"no loss was finite, at lr={learning_rate:g}")
        (self.log.parent / "pid").write_text(str(os.getpid()))
        with self.log.open("a") as log:
            log.write(f"{learning_rate:g} {seed}\n")
        optimizer = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], lr=learning_rate)
        for _ in range(self.task.steps):
            optimizer.zero_grad()
            self.loss(net).backward()
            optimizer.step()

    def score(self, net: nn.Module, part: str) -> Scores:
        rows = slice(8, 16) if part == "dev" else slice(16, 24)
        with torch.no_grad():
            errors = (net.eval()(self.x[rows]) - self.y[rows]).square().mean((1, 2))
        return Scores(tuple(errors.tolist()), (1.0,) * len(errors))

    def loss(self, net: nn.Module) -> torch.Tensor:
        return (net(self.x[:8]) - self.y[:8]).square().mean()
