"""A bundle of several graphs: an encoder run once, a decoder that remembers; against the network itself in torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import audiolora
from audiolora.edge import Session
from audiolora.export import add_adapter, export
from audiolora.export.parts import Part
from audiolora.export.signing import make_keys
from tests.export.networks import randomise


class Speaker(nn.Module):
    """Hears x (N, 3, L) once, then speaks: each step adds what was heard to the mean of all steps so far."""

    def __init__(self) -> None:
        super().__init__()
        self.hear, self.shared, self.speak = nn.Conv1d(3, 4, 3), nn.Linear(4, 4), nn.Linear(4, 4)

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return self.shared(self.hear(x).mean(-1))

    def forward(self, x: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
        """(N, T, 4) → (N, 4): the last step's."""
        return self.speak(torch.tanh(self.shared(steps)).mean(1)) + self.encode(x)


class Encoder(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net.encode(x)


class Decoder(nn.Module):
    """Holds two modules of the network, not the whole of it."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.shared, self.speak = net.shared, net.speak

    def forward(self, heard: torch.Tensor, step: torch.Tensor, past: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        present = torch.cat([past, torch.tanh(self.shared(step)).unsqueeze(1)], 1)
        return self.speak(present.mean(1)) + heard, present


def parts() -> list[Part]:
    draw = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw)

    batch = {0: "batch"}
    heard = Part({"x": normal(2, 3, 9)}, {"x": {0: "batch", 2: "time"}}, "encoder", Encoder, outputs=("heard",))
    inputs = {"heard": normal(2, 4), "step": normal(2, 4), "past": normal(2, 3, 4)}
    free = {"heard": batch, "step": batch, "past": {0: "batch", 1: "steps"}}
    return [heard, Part(inputs, free, "decoder", Decoder, {"past": "present"}, ("said", "present"))]


def speaker(seed: int = 0, r: int = 2) -> nn.Module:
    torch.manual_seed(0)
    model = audiolora.adapt(Speaker(), targets=["hear", "shared", "speak"], r=r).eval()
    torch.manual_seed(seed)
    randomise(model)
    return model


def said(session: Session, x: np.ndarray, steps: np.ndarray, adapter: str | None) -> list[np.ndarray]:
    heard = session.run(x, adapter, graph="encoder")
    states, found = None, []
    for step in steps.transpose(1, 0, 2):
        y, states = session.network(adapter).step({"heard": heard, "step": step.copy()}, states, "decoder")
        found.append(y)
    return found


@pytest.mark.parametrize("form", ["wsum", "fact"])
@torch.no_grad()
def test_graphs_give_what_the_network_gives_step_by_step(tmp_path: Path, form: str) -> None:
    model = speaker()
    made = export(model, tmp_path / "b", parts=parts(), form=form, max_rank=8)
    slots = {
        name: {slot.name.rpartition(".")[0] for slot in graph.slots} for name, graph in made.manifest.graphs.items()
    }
    assert slots == {
        "encoder": {"hear.weight", "shared.weight"},
        "decoder": {"shared.weight", "speak.weight"},  # shared is in both, hear and speak where they are used
    }
    other = speaker(5, r=3)
    add_adapter(other, tmp_path / "b", id="other", parts=parts())
    session = Session(tmp_path / "b", threads=1)
    for name in session.available():
        session.load(name)
        assert session.selftest(name) < 1e-5
    x, steps = torch.randn(1, 3, 20), torch.randn(1, 4, 4)
    for name, net in (("default", model), ("other", other)):
        wanted = [net(x, steps[:, : t + 1]).numpy() for t in range(4)]
        found = said(session, x.numpy(), steps.numpy(), name)
        np.testing.assert_allclose(found, wanted, atol=1e-5)
        bound = session.bind(name)
        first = bound.run({"heard": bound.run(x.numpy(), "encoder"), "step": steps[:, 0].numpy()}, "decoder")
        np.testing.assert_allclose(first, wanted[0], atol=1e-5)
    with model.disable_adapter():
        wanted = [model(x, steps[:, : t + 1]).numpy() for t in range(4)]
    np.testing.assert_allclose(said(session, x.numpy(), steps.numpy(), None), wanted, atol=1e-5)


def test_states_and_graphs_of_another_name_or_shape_are_refused(tmp_path: Path) -> None:
    private, public = make_keys(tmp_path / "k")
    export(speaker(), tmp_path / "b", parts=parts(), key=private)
    session = Session(tmp_path / "b", key=public, threads=1)
    network = session.network()
    given = {"heard": np.zeros((1, 4), np.float32), "step": np.zeros((1, 4), np.float32)}
    with pytest.raises(ValueError, match="has the graphs encoder, decoder, and none was named"):
        session.run(np.zeros((1, 3, 9), np.float32))
    with pytest.raises(ValueError, match="'base' is none of them"):
        network.step(given, graph="base")
    for states, message in (
        ({"post": np.zeros((1, 1, 4), np.float32)}, "the states are past, got post"),
        ({"past": np.zeros((2, 1, 4), np.float32)}, r"past must be float32 \(batch, steps, 4\), got \(2, 1, 4\)"),
        ({"past": np.zeros((1, 1, 4))}, "got float64"),
    ):
        with pytest.raises(ValueError, match=message):
            network.step(given, states, "decoder")


def test_parts_that_contradict_themselves_are_refused(tmp_path: Path) -> None:
    x = torch.zeros(1, 3, 9)
    for how, message in (
        ({"dynamic": {"z": {0: "batch"}}}, "base: dynamic names z, and there is x"),
        ({"dynamic": {"x": {3: "time"}}}, "an axis of x that it does not have"),
        ({"dynamic": {}, "states": {"past": "y"}}, "states names past, and there is x"),
        ({"dynamic": {}, "states": {"x": "y"}}, "states names y, and there is none"),
    ):
        with pytest.raises(ValueError, match=message):
            Part({"x": x}, **how)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="give no example"):
        export(speaker(), tmp_path / "b", x, parts=parts())
    export(speaker(), tmp_path / "b", parts=parts())
    with pytest.raises(ValueError, match="the base has the graphs encoder, decoder, got base"):
        add_adapter(speaker(), tmp_path / "b", id="one")
    wrong = [parts()[0], Part(parts()[1].inputs, parts()[1].dynamic, "decoder", Decoder, outputs=("one",))]
    with pytest.raises(ValueError, match="decoder: 2 outputs, and 1 names"):
        export(speaker(), tmp_path / "c", parts=wrong)
    assert not (tmp_path / "c").exists()
