"""int8 in graphs: bit for bit what torch trained over, parity with it, and what it costs, measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn.utils import parametrizations

import audiolora
from audiolora.conv.factors import as_kernel
from audiolora.edge import Session
from audiolora.export import add_adapter, export
from audiolora.layers.quantized import codes_of

TARGETS = ["plain", "up", "normed", "proj"]


class Net(nn.Module):
    """Every order in which a graph may have a weight, and one too small to be worth it."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = nn.Conv1d(3, 32, 5, padding=2)
        self.up = nn.ConvTranspose1d(32, 16, 4, stride=2, groups=2)
        self.normed = parametrizations.weight_norm(nn.Conv1d(16, 16, 3, padding=1))
        self.whole = nn.ConvTranspose1d(16, 16, 3)
        self.small = nn.Conv1d(16, 16, 1, groups=16)
        self.proj, self.head = nn.Linear(16, 24), nn.Linear(24, 24, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.normed(torch.tanh(self.up(torch.tanh(self.plain(x))))))
        return self.head(torch.relu(self.proj(self.small(self.whole(y)).mT)))


def adapted(base: nn.Module, *, dora: bool = False, names: tuple[str, ...] = ("user1",)) -> Any:
    torch.manual_seed(1)
    config = LoraConfig(r=2, target_modules=TARGETS, init_lora_weights=False, use_dora=dora)
    with audiolora.enabled():
        model = get_peft_model(base, config, adapter_name=names[0])
        for name in names[1:]:
            model.add_adapter(name, config)
    return model.eval()


def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


def sample(n: int = 2, length: int = 15) -> torch.Tensor:
    return torch.randn(n, 3, length, generator=torch.Generator().manual_seed(n))


def constants(bundle: Path) -> dict[str, np.ndarray]:
    graph = onnx.load(bundle / "base" / "base.onnx").graph
    return {constant.name: numpy_helper.to_array(constant) for constant in graph.initializer}


@pytest.fixture(scope="module")
def trained_in_int8(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path, Any]:
    """A base that `audiolora.quantize` left, adapters on it, and its bundle."""
    model = adapted(audiolora.quantize(net(), target_modules=["plain", "up", "proj"]))
    folder = tmp_path_factory.mktemp("int8") / "bundle"
    return model, folder, export(model, folder, sample(), quantize="int8", web=True)


def test_the_codes_trained_over_are_those_in_the_graph(trained_in_int8: tuple[Any, Path, Any]) -> None:
    model, folder, _ = trained_in_int8
    found = constants(folder)
    for name in ("plain", "up", "proj"):
        base = getattr(model.base_model.model, name).get_base_layer()
        codes, scale = codes_of(base)
        groups = base.groups if isinstance(base, nn.ConvTranspose1d) else None
        wanted = as_kernel(codes, groups).numpy()
        stored = found[f"net.{name}.weight.int8"]
        assert stored.dtype == np.int8 and np.array_equal(stored.reshape(wanted.shape), wanted)
        assert np.array_equal(found[f"net.{name}.weight.scale"], scale.numpy())


def test_every_large_weight_is_int8_and_nothing_else_is_float(trained_in_int8: tuple[Any, Path, Any]) -> None:
    _, folder, _ = trained_in_int8
    found = constants(folder)
    assert sorted(array.size for array in found.values() if array.dtype == np.int8) == sorted(
        [3 * 32 * 5, 32 * 8 * 4, 16 * 16 * 3, 16 * 16 * 3, 16 * 24, 24 * 24]
    )
    floats = {k: v.size for k, v in found.items() if v.dtype == np.float32 and "lora" not in k}
    assert max(floats.values()) <= 32


def test_outputs_are_those_of_torch_over_the_rounded_weights(trained_in_int8: tuple[Any, Path, Any]) -> None:
    model, folder, made = trained_in_int8
    assert made.manifest.quantized == "int8" and made.manifest.tolerance == 1e-5
    assert max(made.differences.values()) <= 1e-5
    session = Session(folder)
    session.load("user1")
    x = sample(3, 22)
    with torch.no_grad():
        float_rest = model(x).numpy()
    y = session.run(x.numpy(), "user1")
    assert 0 < np.linalg.norm(y - float_rest) / np.linalg.norm(float_rest) < 0.02
    assert session.selftest("user1") <= 1e-5
    graph = onnxruntime.InferenceSession((folder / "base" / "base.web.onnx").read_bytes())
    zeros = {s.name: np.zeros([1 if isinstance(d, str) else d for d in s.shape], np.float32)
             for s in session.manifest.slots}  # fmt: skip
    np.testing.assert_allclose(graph.run(None, {"x": x.numpy(), **zeros})[0], session.run(x.numpy()), atol=1e-5)


def test_an_adapter_that_is_trained_later_fits_the_same_codes(trained_in_int8: tuple[Any, Path, Any]) -> None:
    _, folder, _ = trained_in_int8
    later = adapted(audiolora.quantize(net(), target_modules=["plain", "up", "proj"]), names=("later",))
    add_adapter(later, folder, "later")
    session = Session(folder)
    session.load("later")
    assert session.selftest("later") <= 1e-5


@pytest.mark.slow
def test_what_it_costs_is_measured_on_the_data_that_is_given(tmp_path: Path) -> None:
    seen: list[np.ndarray] = []

    def evaluate(run: Any) -> dict[str, float]:
        seen.append(run(sample(4).numpy()))
        return {"size": float(np.abs(seen[-1]).mean())}

    model = adapted(net(), dora=True)
    made = export(model, tmp_path / "b", sample(), quantize="int8", evaluate=evaluate)
    cost = made.accuracy
    assert set(cost.scores) == {"base", "user1"} and len(seen) == 4
    with torch.no_grad():
        np.testing.assert_allclose(seen[2], model(sample(4)).numpy(), atol=1e-5)  # the float network, adapted
        with model.disable_adapter():
            wanted = model(sample()).numpy()
    session = Session(tmp_path / "b")
    off = np.linalg.norm(session.run(sample().numpy()) - wanted) / np.linalg.norm(wanted)
    assert cost.relative_error["base"] == pytest.approx(off, rel=1e-3) and 0 < off < 0.02
    assert cost.scores["user1"]["size"] == pytest.approx([np.abs(seen[2]).mean(), np.abs(seen[3]).mean()])
    assert "user1" in str(cost) and "quantised" in str(cost)


@pytest.mark.slow
def test_a_head_of_the_adapter_s_own(tmp_path: Path) -> None:
    for base in (net(), audiolora.quantize(net())):
        with audiolora.enabled():
            config = LoraConfig(r=2, target_modules=["plain"], init_lora_weights=False, modules_to_save=["head"])
            model = get_peft_model(base, config).eval()
        with torch.no_grad():
            model.base_model.model.head.modules_to_save["default"].weight.add_(0.1)
        made = export(model, tmp_path / "bundle", sample(), quantize="int8", overwrite=True)
        assert "head.weight.delta" in {slot.name for slot in made.manifest.slots}
        with torch.no_grad():
            wanted = model(sample()).numpy()
        session = Session(tmp_path / "bundle")
        session.load("default")
        off = np.linalg.norm(session.run(sample().numpy(), "default") - wanted) / np.linalg.norm(wanted)
        assert off < 0.02


@pytest.fixture(scope="module")
def static(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path, Any]:
    model = adapted(net(), names=("user1", "user2"))
    folder = tmp_path_factory.mktemp("qdq") / "bundle"
    calibration = [sample(1, 15 + i) for i in range(6)]
    return model, folder, export(model, folder, sample(), form="fact", quantize="qdq", calibration=calibration)


def test_activations_in_int8_are_off_by_what_the_manifest_says(static: tuple[Any, Path, Any]) -> None:
    model, folder, made = static
    assert made.manifest.quantized == "qdq" and 1e-5 < made.manifest.tolerance < 0.2
    assert max(made.differences.values()) <= made.manifest.tolerance
    session = Session(folder)
    for name in ("user1", "user2"):
        session.load(name)
        assert 0 < session.selftest(name) <= made.manifest.tolerance
        model.set_adapter(name)
        with torch.no_grad():
            wanted = model(sample(1)).numpy()
        assert np.linalg.norm(session.run(sample(1).numpy(), name) - wanted) / np.linalg.norm(wanted) < 0.1
    assert "no evaluation data" in str(made.accuracy)


def test_an_adapter_s_tensors_stay_float(static: tuple[Any, Path, Any]) -> None:
    _, folder, made = static
    graph = onnx.load(folder / "base" / "base.onnx").graph
    slots = {slot.name for slot in made.manifest.slots}
    assert all(v.dtype == np.float32 for k, v in constants(folder).items() if k in slots)
    quantised = [name for node in graph.node if node.op_type == "QuantizeLinear" for name in node.input]
    assert not slots & set(quantised)
    weights = [v for v in constants(folder).values() if v.dtype == np.int8 and v.ndim >= 2]
    assert len(weights) == 7 and any(node.op_type == "QuantizeLinear" for node in graph.node)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"quantize": "int4"}, "quantize must be one of int8, qdq, or None, got 'int4'"),
        ({"quantize": "qdq", "form": "fact"}, "'qdq' and calibration go together"),
        ({"quantize": "int8", "calibration": [0]}, "calibration is for quantize='qdq'"),
        ({"quantize": "qdq", "calibration": [0]}, "in form 'wsum' they depend on the adapter; take form='fact'"),
        ({"quantize": "int8", "form": "merged"}, "form 'merged' has an adapter in them; take form='wsum'"),
        ({"evaluate": lambda run: {}}, "evaluate measures what quantising costs"),
        ({"quantize": "int8", "evaluate": 3}, "evaluate must be a function.*got int"),
        ({"quantize": "qdq", "form": "fact", "calibration": []}, "calibration is empty"),
        ({"quantize": "qdq", "form": "fact", "calibration": {"encoder": [0]}}, "by graph \\(base\\)"),
        ({"quantize": "qdq", "form": "fact", "calibration": [torch.zeros(1, 4, 9)]}, "x has the shape \\(1, 4, 9\\)"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(arguments: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        export(adapted(net()), tmp_path / "bundle", sample(), **arguments)
    assert not list(tmp_path.iterdir())


def test_four_bits_have_no_form_in_int8(tmp_path: Path) -> None:
    model = adapted(audiolora.quantize(net(), 4, target_modules=["plain"]))
    with pytest.raises(ValueError, match="plain: kept in 4 bits.*export it without quantize"):
        export(model, tmp_path / "bundle", sample(), quantize="int8")
