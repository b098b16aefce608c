"""tsai's InceptionTime: convolutions of three lengths side by side, and batch normalisation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import audiolora
from tests.nets.lifecycle import adapted_names, check_life, needs

pytestmark = [*needs("tsai"), pytest.mark.filterwarnings("ignore")]


def build(depth: int = 3) -> nn.Module:
    from tsai.models.InceptionTime import InceptionTime

    torch.manual_seed(0)
    return InceptionTime(3, 4, nf=4, ks=20, depth=depth).eval()


def sample() -> torch.Tensor:
    return torch.randn(5, 3, 50, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_its_life(method: str, tmp_path: Path) -> None:
    model = check_life(build, lambda net: net(sample()), tmp_path, method=method, r=2)
    assert len(adapted_names(model)) == 3 * (1 + 3 + 1) + 1, "bottleneck, three lengths, pooled; and the shortcut"


def test_its_batch_norm_stays_as_it_is() -> None:
    model = audiolora.adapt(build(), r=2)
    before = {name: buffer.clone() for name, buffer in model.named_buffers() if "running_" in name}
    assert before
    model.train()(sample())
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers() if name in before)
