"""Networks, data, and the training of one device by PEFT and torch alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

import audiolora
from audiolora.fleet import batch_order

LENGTH = 24


class Net(nn.Module):
    """Convolutions of every kind, a Linear, norms and a head; (N, 2, 24) → (N, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv1d(2, 8, 3, padding=1)
        self.grouped = nn.Conv1d(8, 8, 3, padding=2, dilation=2, groups=2)
        self.causal = nn.utils.parametrizations.weight_norm(nn.Conv1d(8, 8, 3, dilation=4))
        self.norm = nn.BatchNorm1d(8)
        self.up = nn.ConvTranspose1d(8, 6, 4, stride=2, padding=1)
        self.mix = nn.Linear(6, 6)
        self.head = nn.Conv1d(6, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = F.gelu(self.stem(x))
        h = h + F.gelu(self.grouped(h))
        h = self.norm(h + F.gelu(self.causal(F.pad(h, (8, 0)))))
        h = self.mix(F.gelu(self.up(h)).transpose(1, 2)).transpose(1, 2)
        return self.head(h).mean(2)


TARGETS = ["stem", "grouped", "causal", "up", "mix"]


def make_net(build: Callable[[], nn.Module] = Net, seed: int = 3) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = build()
        for module in net.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.running_mean.normal_()
    return net.eval()


def make_data(ids: list[str], counts: list[int], seed: int = 0) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return {
        id: (torch.randn(m, 2, LENGTH, generator=generator), torch.randn(m, 3, generator=generator))
        for id, m in zip(ids, counts, strict=True)
    }


def peft_model(config: LoraConfig, net: nn.Module, seed: int = 0) -> PeftModel:
    with audiolora.enabled(), torch.random.fork_rng():
        torch.manual_seed(seed)
        return get_peft_model(net, config).eval()


def train_alone(
    model: PeftModel, id: str, data: Any, *, epochs: int, batch_size: int, seed: int = 0, **adamw: Any
) -> list[float]:
    """The losses of a plain PyTorch loop."""
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], **adamw)
    losses = []
    for epoch in range(epochs):
        for batch in batch_order(len(data[0]), batch_size, id=id, seed=seed, epoch=epoch):
            optimiser.zero_grad()
            loss = F.mse_loss(model(data[0][batch]), data[1][batch])
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
    return losses
