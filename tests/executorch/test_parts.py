"""Several graphs, and one with a state: a causal network in steps, equal to the whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import audiolora
from audiolora.edge import Session
from audiolora.export import export
from audiolora.export.parts import Part
from tests.export.networks import randomise

pytest.importorskip("executorch", reason="needs ExecuTorch: make test-executorch")
pytestmark = pytest.mark.slow

CONTEXT, STEPS = 8, 5


class Net(nn.Module):
    """(N, 3, L) → (N, 2, L), causal; and a head that one graph alone uses."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.out, self.head = nn.Conv1d(3, 6, 3, dilation=4), nn.Conv1d(6, 2, 1), nn.Linear(2, 4)

    def unpadded(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(torch.relu(self.conv(x)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.unpadded(F.pad(x, (CONTEXT, 0)))


class Step(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor, past: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        seen = torch.cat([past, x], -1)
        return self.net.unpadded(seen), seen[..., -CONTEXT:]


class Head(Step):
    def forward(self, last: torch.Tensor) -> torch.Tensor:
        return self.net.head(last)


def parts() -> list[Part]:
    draw, batch = torch.Generator().manual_seed(1), {0: "batch"}
    x, past, last = (torch.randn(2, *shape, generator=draw) for shape in ((3, STEPS), (3, CONTEXT), (2,)))
    step = Part({"x": x, "past": past}, {"x": batch, "past": batch}, "step", Step, {"past": "next"}, ("y", "next"))
    return [step, Part({"last": last}, {"last": batch}, "head", Head)]


def model(targets: list[str]) -> nn.Module:
    torch.manual_seed(0)
    found = audiolora.adapt(Net(), targets=targets, r=2).eval()
    randomise(found)
    return found


@torch.no_grad()
def test_steps_are_the_whole(tmp_path: Path) -> None:
    net = model(["conv", "out", "head"])
    made = export(net, tmp_path / "b", parts=parts(), target="executorch")
    assert max(made.differences.values()) <= 1e-5
    assert [slot.name for slot in made.manifest.graphs["head"].slots] == ["head.weight.lora_A", "head.weight.lora_B"]
    session = Session(tmp_path / "b")
    session.load("default")
    x = torch.randn(3, 3, 4 * STEPS, generator=torch.Generator().manual_seed(2))
    states, found = None, []
    for part in x.split(STEPS, -1):
        y, states = session.network("default").step({"x": part.contiguous().numpy()}, states, "step")
        found.append(y)
    np.testing.assert_allclose(np.concatenate(found, -1), net(x).numpy(), rtol=0, atol=1e-5)


def test_an_adapted_tensor_that_no_graph_uses_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"head\.weight\.lora_A, .*: no graph uses what it adapts"):
        export(model(["conv", "head"]), tmp_path / "b", parts=parts()[:1], target="executorch")
