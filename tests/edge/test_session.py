"""The session on a bundle written by hand: outputs against sums in float64; swapping, binding, what it refuses."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from audiolora.edge import Session
from audiolora.export import make_keys
from audiolora.export.errors import BundleError
from audiolora.export.manifests import TensorSpec
from tests.export.small_bundle import (
    C_IN,
    factors,
    graph,
    reference,
    sample,
    weights,
    write_adapter,
    write_base,
)

CLOSE = {"rtol": 0, "atol": 1e-5}


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Two adapters of ranks 2 and 5."""
    write_base(tmp_path)
    write_adapter(tmp_path, "user1", factors(1, rank=2))
    write_adapter(tmp_path, "user2", factors(2, rank=5))
    return tmp_path


@pytest.fixture
def session(small: Path) -> Session:
    found = Session(small, threads=1)
    for name in found.available():
        found.load(name)
    return found


def test_each_run_takes_the_adapter_that_it_names(session: Session) -> None:
    assert session.loaded == session.available() == ("user1", "user2")
    for n, length in ((2, 11), (1, 5), (3, 40)):
        x = sample(n, length)
        for name, adapter in (
            ("user1", factors(1, 2)),
            (None, None),
            ("user2", factors(2, 5)),
            ("user1", factors(1, 2)),
        ):
            np.testing.assert_allclose(session.run(x, adapter=name), reference(x, adapter), **CLOSE)


@pytest.mark.parametrize("name", ["user1", "user2", None])
def test_a_bound_adapter_gives_the_same(session: Session, name: str | None) -> None:
    adapter = {"user1": factors(1, 2), "user2": factors(2, 5)}.get(str(name))
    bound = session.bind(name)
    for x in (sample(), sample(3, 40)):
        np.testing.assert_allclose(bound.run(x), reference(x, adapter), **CLOSE)


def test_a_bound_adapter_stays_when_another_is_loaded_in_its_place(small: Path, session: Session) -> None:
    bound = session.bind("user1")
    write_adapter(small, "user1", factors(9, rank=1))
    session.load("user1")
    x = sample()
    np.testing.assert_allclose(bound.run(x), reference(x, factors(1, 2)), **CLOSE)
    np.testing.assert_allclose(session.run(x, "user1"), reference(x, factors(9, 1)), **CLOSE)


def test_binding_folds_the_adapter_into_the_weights(session: Session) -> None:
    import onnx

    from audiolora.edge.graph import with_constants

    fixed = onnx.load_from_string(with_constants(graph(), factors(1, 2)))
    onnx.checker.check_model(fixed)
    assert [value.name for value in fixed.graph.input] == ["x"]
    constants = {value.name: onnx.numpy_helper.to_array(value) for value in fixed.graph.initializer}
    for name, tensor in factors(1, 2).items():
        np.testing.assert_array_equal(constants[name], tensor)
    np.testing.assert_array_equal(constants["W"], weights()[0])
    with pytest.raises(BundleError, match="no input z"):
        with_constants(graph(), {"z": np.ones(1, np.float32)})
    with pytest.raises(BundleError, match="cannot be fixed"):
        with_constants(graph()[:-7], factors(1, 2))


def test_an_adapter_from_elsewhere_is_loaded(small: Path, session: Session, tmp_path: Path) -> None:
    elsewhere = tmp_path / "downloads" / "user2"
    shutil.copytree(small / "adapters" / "user2", elsewhere)
    shutil.rmtree(small / "adapters")
    session.unload("user2")
    session.load("user2", elsewhere)
    np.testing.assert_allclose(session.run(sample(), "user2"), reference(sample(), factors(2, 5)), **CLOSE)
    with pytest.raises(BundleError, match="'user2', and 'user1' was asked for"):
        session.load("user1", elsewhere)


def test_a_load_that_fails_leaves_the_running_adapter(small: Path, session: Session) -> None:
    path = small / "adapters" / "user1" / "adapter.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(BundleError, match="cut off"):
        session.load("user1")
    with pytest.raises(BundleError):
        session.load("../user1")
    assert session.loaded == ("user1", "user2")
    np.testing.assert_allclose(session.run(sample(), "user1"), reference(sample(), factors(1, 2)), **CLOSE)


def test_files_that_go_after_loading_change_no_run(small: Path, session: Session) -> None:
    shutil.rmtree(small)
    np.testing.assert_allclose(session.run(sample(), "user2"), reference(sample(), factors(2, 5)), **CLOSE)
    np.testing.assert_allclose(session.run(sample()), reference(sample()), **CLOSE)
    assert session.selftest("user2") < 1e-5


def test_what_is_bound_is_what_was_loaded(small: Path, session: Session) -> None:
    write_adapter(small, "user1", factors(9, rank=1))
    with pytest.raises(BundleError, match="user1: not what was loaded"):
        session.bind("user1")
    np.testing.assert_allclose(session.bind("user2").run(sample()), reference(sample(), factors(2, 5)), **CLOSE)
    write_base(small, max_rank=9)
    with pytest.raises(BundleError, match="base: not what was loaded"):
        session.bind("user2")


def test_the_self_test_finds_another_output(small: Path, session: Session) -> None:
    assert session.selftest() < 1e-5 and session.selftest("user2") < 1e-5
    write_adapter(small, "user1", factors(1, 2))
    session._adapters["user1"] = replace(session._adapters["user1"], network=session._adapters["user2"].network)
    with pytest.raises(BundleError, match="user1: this runtime's output is off"):
        session.selftest("user1")


def test_an_adapter_that_is_not_loaded_is_named(session: Session) -> None:
    session.unload("user1")
    for call in (
        lambda: session.run(sample(), "user1"),
        lambda: session.bind("user1"),
        lambda: session.unload("user1"),
    ):
        with pytest.raises(ValueError, match=r"'user1' is not loaded \(loaded: user2\)"):
            call()


@pytest.mark.parametrize(
    "x, message",
    [
        (np.zeros((1, C_IN, 9)), r"x must be float32 \(batch, 3, time\), got float64"),
        (np.zeros((C_IN, 9), np.float32), r"got float32 \(3, 9\)"),
        (np.zeros((1, 4, 9), np.float32), r"got \(1, 4, 9\)"),
        ([[1.0]], "got list"),
        ({"z": np.zeros((1, C_IN, 9), np.float32)}, "the inputs are x, got z"),
        ({"x": sample(), "conv.bias.delta": np.zeros(4, np.float32)}, "the inputs are x, got conv.bias.delta, x"),
    ],
)
def test_inputs_of_another_kind_are_refused(session: Session, x: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        session.run(x)  # type: ignore[arg-type]


def test_a_signed_bundle_runs_with_its_key_alone(tmp_path: Path) -> None:
    private, public = make_keys(tmp_path / "ours")
    write_base(tmp_path / "b", key=private)
    write_adapter(tmp_path / "b", key=private)
    session = Session(tmp_path / "b", key=public, threads=1)
    session.load("user1")
    write_adapter(tmp_path / "b", "user2", factors(3))
    with pytest.raises(BundleError, match="it is not signed, and a key was given"):
        session.load("user2")
    with pytest.raises(BundleError, match="it is signed"):
        Session(tmp_path / "b")


def test_a_graph_that_would_run_the_base_instead_is_refused(tmp_path: Path) -> None:
    import onnx

    model = onnx.load_from_string(graph())
    kept = [value for value in model.graph.input if value.name != "conv.weight.lora_B"]
    del model.graph.input[:]
    model.graph.input.extend(kept)  # lora_B is a constant now
    write_base(tmp_path, model=model.SerializeToString())
    with pytest.raises(BundleError, match="its slots are not those of the manifest: conv.weight.lora_B"):
        Session(tmp_path)


@pytest.mark.parametrize("part", ["inputs", "outputs"])
def test_a_graph_with_other_ends_than_the_manifest_is_refused(tmp_path: Path, part: str) -> None:
    write_base(tmp_path, ends={part: (TensorSpec("other", (1,), "float32"),)})
    with pytest.raises(BundleError, match=f"its {part} are not those of the manifest: other, "):
        Session(tmp_path)


def test_an_older_runtime_is_refused(tmp_path: Path) -> None:
    write_base(tmp_path, runtime="99.0.0")
    with pytest.raises(BundleError, match="wants ONNX Runtime 99.0.0, and this is"):
        Session(tmp_path)


def test_a_model_that_the_runtime_does_not_take_is_refused(tmp_path: Path) -> None:
    write_base(tmp_path, model=graph()[:-20])
    with pytest.raises(BundleError, match="ONNX Runtime refuses it"):
        Session(tmp_path)


@pytest.mark.parametrize("link", [shutil.copy, os.link, os.symlink])
def test_a_model_that_reads_another_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, link: object
) -> None:
    import onnx

    model = onnx.load_from_string(graph())
    (tmp_path / "secret").write_bytes(weights()[0].tobytes())
    link(tmp_path / "secret", tmp_path / "w.bin")  # type: ignore[operator]
    tensor = next(value for value in model.graph.initializer if value.name == "W")
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for location in ("w.bin", str(tmp_path / "w.bin")):
        del tensor.external_data[:]
        entry = tensor.external_data.add()
        entry.key, entry.value = "location", location
        write_base(tmp_path, model=model.SerializeToString())
        monkeypatch.chdir(tmp_path)
        with pytest.raises(BundleError, match="ONNX Runtime refuses it"):
            Session(tmp_path)


def test_several_inputs_and_outputs(tmp_path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper

    sizes = ["batch", 2]
    made = helper.make_graph(
        [helper.make_node("Add", ["a", "b"], ["s"]), helper.make_node("Sub", ["a", "b"], ["d"])],
        "two",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes) for name in "ab"],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes) for name in "sd"],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    specs = {name: TensorSpec(name, ("batch", 2), "float32") for name in "absd"}
    ends = {"inputs": (specs["a"], specs["b"]), "outputs": (specs["s"], specs["d"])}
    write_base(tmp_path, model=model.SerializeToString(), form="merged", ends={"slots": (), **ends})
    a, b = np.ones((3, 2), np.float32), np.full((3, 2), 4, np.float32)
    session = Session(tmp_path)
    added, subtracted = session.run({"b": b, "a": a})
    np.testing.assert_array_equal(added, a + b)
    np.testing.assert_array_equal(subtracted, a - b)
    with pytest.raises(ValueError, match="sizes of one name must be equal"):
        session.run({"a": a, "b": b[:2]})
