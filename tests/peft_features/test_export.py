"""torch.export and ONNX of adapted models: plain operators, any length, the eager outputs."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import nn

import audiolora
from tests.peft_features.networks import METHODS, adapted, close, config, randomise, sample

SINGLE = {"rtol": 1e-5, "atol": 1e-6}
lora_and_dora = pytest.mark.parametrize("method", ["lora", "dora"])
STATES = ("active", "disabled", "merged", "two")


def network(method: str, state: str) -> nn.Module:
    """The adapted network itself, for evaluation, in float32."""
    model = adapted(torch.float32, **METHODS[method]).eval()
    if state == "two":
        with audiolora.enabled():
            model.add_adapter("second", config(r=3, **METHODS[method]))
        randomise(model, "second", seed=4)
        model.base_model.set_adapter(["default", "second"])
    if state == "disabled":
        model.base_model.disable_adapter_layers()
    if state == "merged":
        model.merge_adapter()
    return model.base_model.model


def exported(model: nn.Module, strict: bool) -> Any:
    batch, length = torch.export.Dim("batch", min=1), torch.export.Dim("length", min=8)
    x = sample(dtype=torch.float32)
    return torch.export.export(model, (x,), strict=strict, dynamic_shapes=({0: batch, 2: length},))


def inputs() -> list[torch.Tensor]:
    return [sample(n, length, torch.float32, seed=n) for n, length in ((3, 20), (1, 9), (4, 57))]


@pytest.mark.parametrize("state, strict", [("active", True), *[(state, False) for state in STATES]])
@lora_and_dora
def test_an_exported_model_has_plain_operators_and_any_length(method: str, state: str, strict: bool) -> None:
    model = network(method, state)
    program = exported(model, strict)
    called = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert all(name.startswith(("aten.", "<built-in", "_operator")) for name in called), called
    for x in inputs():
        close(program.module()(x), model(x), **SINGLE)


@pytest.mark.slow
@pytest.mark.parametrize("state", STATES[1:])
@lora_and_dora
def test_strictly_exported_in_the_other_states(method: str, state: str) -> None:
    model = network(method, state)
    program = exported(model, strict=True)
    for x in inputs():
        close(program.module()(x), model(x), **SINGLE)


@lora_and_dora
def test_an_exported_model_is_saved_and_loaded(method: str) -> None:
    model, buffer = network(method, "active"), io.BytesIO()
    torch.export.save(exported(model, strict=False), buffer)
    buffer.seek(0)
    program = torch.export.load(buffer).module()
    for x in inputs():
        close(program(x), model(x), **SINGLE)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # the exporter's own
@pytest.mark.parametrize("state", [STATES[0], *[pytest.param(state, marks=pytest.mark.slow) for state in STATES[1:]]])
@lora_and_dora
def test_onnxruntime_gives_the_same_outputs(method: str, state: str) -> None:
    pytest.importorskip(
        "onnxscript", reason="torch.onnx.export(dynamo=True) needs onnxscript: pip install 'audiolora[dev]'"
    )
    onnxruntime = pytest.importorskip(
        "onnxruntime", reason="onnxruntime is not installed: pip install 'audiolora[dev]'"
    )
    model = network(method, state)
    batch, length = torch.export.Dim("batch", min=1), torch.export.Dim("length", min=8)
    program = torch.onnx.export(
        model,
        (sample(dtype=torch.float32),),
        input_names=["x"],
        dynamo=True,
        dynamic_shapes=({0: batch, 2: length},),
        verbose=False,
    )
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])
    for x in inputs():
        (y,) = session.run(None, {"x": x.numpy()})
        close(torch.from_numpy(y), model(x).detach(), rtol=1e-4, atol=1e-5)
