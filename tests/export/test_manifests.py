"""Manifests: what is written is read, and whatever else is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from audiolora.export.errors import BundleError
from audiolora.export.forecast_settings import forecast_settings
from audiolora.export.manifests import (
    AdapterManifest,
    BaseManifest,
    FileEntry,
    GraphSpec,
    StateSpec,
    TensorSpec,
    from_json,
    smaller_version,
    to_json,
)

ENTRY = FileEntry("0" * 64, 3)
FORECAST = {
    "lookback": 24,
    "horizon": 6,
    "freq": "h",
    "loss": "mae",
    "name": "forecast",
    "quantiles": [0.1, 0.5],
    "known": ["hour_sin"],
    "past": ["tempé"],
    "scaler": {"kind": "standard", "floor": 0.001, "unscaled": [], "devices": {"a": {"y": [1.5, 2.0]}}},
}


def graph(**changes: Any) -> GraphSpec:
    says: dict[str, Any] = {
        "inputs": (TensorSpec("x", ("batch", 3, "time"), "float32"),),
        "outputs": (TensorSpec("y", ("batch", 6), "float32"),),
        "slots": (TensorSpec("a", ("r0", 3), "float32"),),
        "states": (StateSpec("past", "present", ("batch", 3, 2), "float32"),),
    }
    return GraphSpec(**{**says, **changes})


def base(**changes: Any) -> BaseManifest:
    says: dict[str, Any] = {
        "id": "pumps",
        "files": {"base.onnx": ENTRY, "selftest.safetensors": ENTRY},
        "target": "onnx",
        "form": "wsum",
        "opset": 20,
        "runtime": "1.20.0",
        "graphs": {"base": graph()},
        "max_rank": 8,
        "task": forecast_settings(FORECAST),
    }
    return BaseManifest(**{**says, **changes})


def adapter(**changes: Any) -> AdapterManifest:
    names = ("adapter.safetensors", "base.onnx_adapter", "selftest.safetensors")
    return AdapterManifest(**{"id": "a", "base": "1" * 64, "rank": 2, "files": dict.fromkeys(names, ENTRY), **changes})


@pytest.mark.parametrize(
    "manifest",
    [
        base(),
        base(task=None, graphs={"base": graph(slots=())}, form="merged"),
        base(quantized="qdq", tolerance=0.01),
        adapter(),
        adapter(task=forecast_settings(FORECAST)),
    ],
)
def test_what_is_written_is_read(manifest: BaseManifest | AdapterManifest) -> None:
    kind = "base" if isinstance(manifest, BaseManifest) else "adapter"
    assert from_json(to_json(manifest), kind, "file") == manifest
    assert to_json(from_json(to_json(manifest), kind, "file")) == to_json(manifest)


def two_shapes(manifest: dict[str, Any]) -> None:
    other = json.loads(json.dumps(manifest["graphs"]["base"]))
    other["slots"][0]["shape"] = ["r0", 4]
    manifest["graphs"]["other"] = other
    manifest["files"]["other.onnx"] = manifest["files"]["base.onnx"]


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "another kind": (lambda m: m.update(kind="adapter"), "no manifest of kind 'base'"),
    "a later format": (lambda m: m.update(format=2), "format 2, and this audiolora reads 1"),
    "a format that is true": (lambda m: m.update(format=True), "format True"),
    "a key too many": (lambda m: m.update(script="x"), "script"),
    "a key too few": (lambda m: m.pop("opset"), "opset"),
    "a list of tensors that is missing": (lambda m: m["graphs"]["base"].pop("slots"), "slots"),
    "a form": (lambda m: m.update(form="sum"), "form must be one of wsum, fact, merged, got 'sum'"),
    "a form that is a list": (lambda m: m.update(form=["wsum"]), "form must be"),
    "a rank": (lambda m: m.update(max_rank=0), "max_rank must be 1 to"),
    "a rank that is a fraction": (lambda m: m.update(max_rank=1.5), "max_rank"),
    "a runtime": (lambda m: m.update(runtime="new"), "runtime must be a version"),
    "an opset": (lambda m: m.update(opset=-1), "opset must be"),
    "an id": (lambda m: m.update(id="a/b"), "id must be 1 to 100 letters"),
    "a hash": (lambda m: m["files"]["base.onnx"].update(sha256="A" * 64), "sha256 must be 64 hex digits"),
    "a size": (lambda m: m["files"]["base.onnx"].update(bytes=-1), "bytes must be"),
    "no graph": (lambda m: m["files"].pop("base.onnx"), "base.onnx among them"),
    "files": (lambda m: m.update(files=[]), "items"),
    "a target": (lambda m: m.update(target="tflite"), "target must be one of onnx, executorch"),
    "no graphs": (lambda m: m.update(graphs={}), "graphs must be at least one"),
    "a graph that is a path": (lambda m: m["graphs"].update({"../x": m["graphs"].pop("base")}), "graphs must be small"),
    "a graph without a file": (lambda m: m["graphs"].update(more=m["graphs"]["base"]), "more.onnx among them"),
    "a slot of two shapes": (two_shapes, "of one shape in every graph"),
    "a state without an output": (lambda m: m["graphs"]["base"]["states"][0].update(output=""), "must be names"),
    "a state named as an input": (lambda m: m["graphs"]["base"]["states"][0].update(input="x"), "different names"),
    "a quantisation": (lambda m: m.update(quantized="int3"), "quantized must be null or one of int8, qdq"),
    "a tolerance": (lambda m: m.update(tolerance=0), "tolerance must be a number within"),
    "a kind of task": (lambda m: m["task"].update(kind="chess"), "task: kind must be one of forecast"),
    "a task without a kind": (lambda m: m["task"].pop("kind"), "kind"),
    "a slot named as an input": (lambda m: m["graphs"]["base"]["slots"][0].update(name="x"), "must be different names"),
    "no inputs": (lambda m: m["graphs"]["base"].update(inputs=[]), "inputs"),
    "a slot of another type": (
        lambda m: m["graphs"]["base"]["slots"][0].update(dtype="float16"),
        "must be float32",
    ),
    "a dtype": (lambda m: m["graphs"]["base"]["inputs"][0].update(dtype="float64"), "x: dtype must be one of"),
    "a shape": (lambda m: m["graphs"]["base"]["inputs"][0].update(shape=[-1]), "x: shape must be"),
    "slots in a merged graph": (lambda m: m.update(form="merged"), "slots must be none"),
    "a lookback": (lambda m: m["task"].update(lookback=0), "lookback must be at least 1 step"),
    "a quantile": (lambda m: m["task"].update(quantiles=[1.0]), "quantiles must be within"),
    "a scaler": (lambda m: m["task"]["scaler"].update(kind="minmax"), "scaler must be one of"),
    "a floor": (lambda m: m["task"]["scaler"].update(floor=0), "floor must be positive"),
    "a scale": (lambda m: m["task"]["scaler"]["devices"]["a"].update(y=[0.0, 0.0]), "a positive scale"),
    "a scaler without devices": (lambda m: m["task"]["scaler"].pop("devices"), "scaler must be just"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_manifest_that_breaks_a_rule_is_refused(what: str) -> None:
    change, message = CHANGES[what]
    says = json.loads(to_json(base()))
    change(says)
    with pytest.raises(BundleError, match=message) as error:
        from_json(json.dumps(says).encode(), "base", "FILE")
    assert str(error.value).startswith("FILE: ")


@pytest.mark.parametrize(
    "data, message",
    [
        (b"", "Expecting value"),
        (b"\xff", "utf-8"),
        (b"[]", "no manifest of kind"),
        (to_json(base()).replace(b'"opset": 20', b'"opset": 20, "opset": 21'), "'opset' is there twice"),
        (to_json(base()).replace(b"0.001", b"NaN"), "NaN is no number"),
        (to_json(base()).replace(b"0.001", b"1e999"), "floor must be positive"),
    ],
)
def test_what_is_no_such_json_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(BundleError, match=message):
        from_json(data, "base", "FILE")


@pytest.mark.parametrize("name", ["adapter.safetensors", "selftest.safetensors"])
def test_an_adapter_has_its_files(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} among them"):
        adapter(files={key: entry for key, entry in adapter().files.items() if key != name})


@pytest.mark.parametrize(
    "found, wanted, older", [("1.9.0", "1.20", True), ("1.31.1", "1.20.0", False), ("2.0", "1.20", False)]
)
def test_versions_are_compared_as_numbers(found: str, wanted: str, older: bool) -> None:
    assert smaller_version(found, wanted) is older
