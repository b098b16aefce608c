"""A bundle whose graph is written by hand with onnx.helper: y = Conv(x, W + B·A) and a head with a bias of its own."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from audiolora.export import bundle
from audiolora.export.manifests import AdapterManifest, BaseManifest, GraphSpec, TensorSpec
from audiolora.export.signing import Key
from audiolora.export.tensors import write_tensors

C_IN, C_OUT, KERNEL = 3, 4, 5
SLOTS = (
    TensorSpec("conv.weight.lora_A", ("r0", C_IN * KERNEL), "float32"),
    TensorSpec("conv.weight.lora_B", (C_OUT, "r0"), "float32"),
    TensorSpec("conv.bias.delta", (C_OUT,), "float32"),
)
ENDS: dict[str, Any] = {
    "inputs": (TensorSpec("x", ("batch", C_IN, "time"), "float32"),),
    "outputs": (TensorSpec("y", ("batch", C_OUT, "steps"), "float32"),),
    "slots": SLOTS,
}


def weights() -> tuple[np.ndarray, np.ndarray]:
    """W (C_out, C_in, k) and b (C_out,)."""
    draw = np.random.default_rng(0)
    return draw.normal(size=(C_OUT, C_IN, KERNEL)).astype(np.float32), draw.normal(size=C_OUT).astype(np.float32)


def factors(seed: int = 1, rank: int = 2) -> dict[str, np.ndarray]:
    """An adapter's tensors."""
    draw = np.random.default_rng(seed)
    sizes = {"r0": rank}
    return {
        slot.name: (0.3 * draw.normal(size=[sizes.get(str(d), d) for d in slot.shape])).astype(np.float32)
        for slot in SLOTS
    }


def reference(x: np.ndarray, adapter: dict[str, np.ndarray] | None = None) -> np.ndarray:
    """y (N, C_out, L - k + 1) by sums over the kernel, in float64."""
    W, b = (tensor.astype(np.float64) for tensor in weights())
    if adapter is not None:
        A, B = adapter["conv.weight.lora_A"], adapter["conv.weight.lora_B"]
        W = W + (B.astype(np.float64) @ A.astype(np.float64)).reshape(W.shape)
        b = b + adapter["conv.bias.delta"]
    length = x.shape[2] - KERNEL + 1
    shifted = [np.einsum("oi,nil->nol", W[:, :, k], x[:, :, k : k + length].astype(np.float64)) for k in range(KERNEL)]
    return sum(shifted) + b[:, None]


def sample(n: int = 2, length: int = 11) -> np.ndarray:
    return np.random.default_rng(7).normal(size=(n, C_IN, length)).astype(np.float32)


def graph() -> bytes:
    """base.onnx: the slots are inputs with rank-1 zeros as defaults."""
    from onnx import TensorProto, checker, helper, numpy_helper

    W, b = weights()
    constants = {"W": W, "b": b, "shape": np.array(W.shape, np.int64)}
    constants |= {s.name: np.zeros([1 if isinstance(d, str) else d for d in s.shape], np.float32) for s in SLOTS}
    A, B, bias = (slot.name for slot in SLOTS)
    nodes = [
        helper.make_node("MatMul", [B, A], ["delta"]),
        helper.make_node("Reshape", ["delta", "shape"], ["kernel"]),
        helper.make_node("Add", ["W", "kernel"], ["adapted"]),
        helper.make_node("Add", ["b", bias], ["bias"]),
        helper.make_node("Conv", ["x", "adapted", "bias"], ["y"]),
    ]
    inputs = [("x", ["batch", C_IN, "time"]), *((slot.name, list(slot.shape)) for slot in SLOTS)]
    made = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", C_OUT, "steps"])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    checker.check_model(model)
    return model.SerializeToString()


def write_base(
    folder: Path,
    key: Key | None = None,
    model: bytes | None = None,
    ends: dict[str, Any] | None = None,
    **changes: Any,
) -> str:
    """``folder/base``; its manifest's sha256."""
    x = sample()
    selftest = write_tensors({"base.input.x": x, "base.output.y": reference(x).astype(np.float32)})
    files = {"base.onnx": graph() if model is None else model, "selftest.safetensors": selftest}
    says: dict[str, Any] = {
        "id": "small",
        "files": bundle.entries(files),
        "target": "onnx",
        "form": "wsum",
        "opset": 20,
        "runtime": "1.20.0",
        "graphs": {"base": GraphSpec(**{**ENDS, **(ends or {})})},
        "max_rank": 8,
    }
    return bundle.write_folder(folder / "base", BaseManifest(**{**says, **changes}), files, key)


def write_adapter(
    folder: Path,
    name: str = "user1",
    tensors: dict[str, np.ndarray] | None = None,
    key: Key | None = None,
    **changes: Any,
) -> Path:
    """``folder/adapters/name``, whatever its tensors are."""
    tensors = factors() if tensors is None else tensors
    rank = len(tensors.get("conv.weight.lora_A", [0]))
    fits = {k: t.shape for k, t in tensors.items()} == {k: t.shape for k, t in factors(rank=rank).items()}
    y = reference(sample(), tensors if fits else None)
    files = {
        "adapter.safetensors": write_tensors(tensors),
        "base.onnx_adapter": b"written by ONNX Runtime",
        "selftest.safetensors": write_tensors({"base.output.y": y.astype(np.float32)}),
    }
    base = hashlib.sha256((folder / "base" / "manifest.json").read_bytes()).hexdigest()
    says = {"id": name, "base": base, "rank": rank, "files": bundle.entries(files), **changes}
    bundle.write_folder(folder / "adapters" / name, AdapterManifest(**says), files, key)
    return folder / "adapters" / name
