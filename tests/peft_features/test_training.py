"""Training with PEFT's features on our layers: checkpointing, compilation, several processes."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import audiolora
from tests.peft_features.networks import (
    METHODS,
    adapted,
    close,
    config,
    layers,
    randomise,
    same_gradients,
    sample,
    step,
)

each_method = pytest.mark.parametrize("method", METHODS)
lora_and_dora = pytest.mark.parametrize("method", ["lora", "dora"])


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not reentrant"])
@pytest.mark.parametrize("dropout", [0.0, 0.4], ids=["", "dropout"])
@each_method
def test_checkpointing_gives_the_same_gradients(method: str, dropout: float, reentrant: bool) -> None:
    model, x = adapted(lora_dropout=dropout, **METHODS[method]), sample().requires_grad_()
    torch.manual_seed(3)
    y, expected = step(model, x)
    inner = model.base_model.model
    features: Callable[..., Any] = inner.features
    inner.features = lambda x: checkpoint(features, x, use_reentrant=reentrant)
    torch.manual_seed(3)
    y_checkpointed, found = step(model, x)
    # Not bit for bit: the reentrant kind first runs without gradients, where W' is formed as one tensor.
    close(y_checkpointed, y, rtol=1e-12, atol=1e-13)
    same_gradients(found, expected, rtol=1e-11, atol=1e-12)


def compiled_step(method: str, backend: str, **tolerance: float) -> None:
    model, x = adapted(torch.float32, **METHODS[method]), sample(dtype=torch.float32)
    y, expected = step(model, x)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    y_compiled, found = step(compiled, x)
    close(y_compiled, y, **tolerance)
    same_gradients(found, expected, **tolerance)


def compiled_inference(method: str, backend: str, active: tuple[Any, ...], **tolerance: float) -> None:
    """With these adapters active in turn, and with none: each the eager model's output."""
    model, x = adapted(torch.float32, **METHODS[method]).eval(), sample(dtype=torch.float32)
    with audiolora.enabled():
        model.add_adapter("second", config(r=3, **METHODS[method]))
    randomise(model, "second", seed=9)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    outputs = []
    with torch.no_grad():
        for names in active:
            model.base_model.set_adapter(names)
            outputs.append(compiled(x))
            close(outputs[-1], model(x), **tolerance)
        with model.disable_adapter():
            outputs.append(compiled(x))
            close(outputs[-1], model(x), **tolerance)
        longer = sample(n=2, length=33, dtype=torch.float32)
        close(compiled(longer), model(longer), **tolerance)
    assert all(not torch.allclose(a, b) for i, a in enumerate(outputs) for b in outputs[:i])


@lora_and_dora
def test_compiled_training_is_one_graph_and_eager_s_gradients(method: str) -> None:
    compiled_step(method, "aot_eager", rtol=1e-5, atol=1e-6)


@lora_and_dora
def test_compiled_inference_follows_the_active_adapters(method: str) -> None:
    compiled_inference(method, "aot_eager", ("default",), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@each_method
def test_inductor_s_training_is_one_graph_and_eager_s_gradients(method: str) -> None:
    compiled_step(method, "inductor", rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@lora_and_dora
def test_inductor_s_inference_follows_the_active_adapters(method: str) -> None:
    compiled_inference(method, "inductor", ("default", "second", ["default", "second"]), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@lora_and_dora
def test_a_compiled_step_trains_as_eager_s(method: str) -> None:
    """Three steps of an optimiser: what the graph holds on to is the parameter, not its value."""
    losses = []
    for backend in (None, "aot_eager"):
        model, x = adapted(torch.float32, **METHODS[method]), sample(dtype=torch.float32)
        torch._dynamo.reset()
        run: nn.Module = model if backend is None else torch.compile(model, fullgraph=True, backend=backend)
        optimizer = torch.optim.Adam((p for p in model.parameters() if p.requires_grad), lr=0.05)
        for _ in range(3):
            optimizer.zero_grad()
            loss = run(x).square().mean()
            loss.backward()
            optimizer.step()
        losses.append((loss.item(), model(x).detach()))
    close(losses[1][1], losses[0][1], rtol=1e-4, atol=1e-5)
    assert losses[0][0] == pytest.approx(losses[1][0], rel=1e-4)


def _one_process(rank: int, world: int, port: int, method: str, results: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    try:
        model = DistributedDataParallel(adapted(**METHODS[method]))
        share = sample(n=4).chunk(world)[rank]
        model(share).square().sum().backward()
        gradients = {name.removeprefix("module."): p.grad for name, p in model.named_parameters() if p.requires_grad}
        results[rank] = {name: gradient.tolist() for name, gradient in gradients.items()}
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
@each_method
def test_two_processes_give_the_gradients_of_the_whole_batch(method: str) -> None:
    """DDP averages over the processes, so twice its gradients are those of the sum over the batch."""
    _, expected = step(adapted(**METHODS[method]), sample(n=4))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with mp.Manager() as manager:
        results = manager.dict()
        mp.spawn(_one_process, args=(2, port, method, results), nprocs=2)
        shares = dict(results)
    for rank in range(2):
        found = {name: 2 * torch.tensor(values, dtype=torch.float64) for name, values in shares[rank].items()}
        same_gradients(found, expected)


def test_only_the_adapters_train() -> None:
    model = adapted()
    _, gradients = step(model, sample())
    factors = {f"base_model.model.{name}.lora_{f}.default.weight" for name, _ in layers(model) for f in "AB"}
    assert set(gradients) == factors
    assert all(gradient.abs().sum() > 0 for gradient in gradients.values())
