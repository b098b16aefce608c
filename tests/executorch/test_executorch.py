"""Bundles for ExecuTorch: outputs are torch's, several adapters of one program at once, and what is refused."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

import audiolora
from audiolora.edge import Session
from audiolora.export import BundleError, add_adapter, export, verify
from audiolora.export.bundle import entries, read_base, write_folder
from audiolora.export.executorch import VERSION
from audiolora.export.executorch_data import DataLayout
from audiolora.export.manifests import from_json
from tests.executorch.bundles import LENGTH, bundle, by_torch, keys
from tests.export.networks import METHODS, adapted, randomise, sample

pytest.importorskip("executorch", reason="needs ExecuTorch: make test-executorch")
pytestmark = pytest.mark.slow

CLOSE = {"rtol": 0, "atol": 2e-5}


@pytest.fixture(scope="module")
def session() -> Session:
    found = Session(bundle().folder, key=keys()[1])
    for name in found.available():
        found.load(name)
    return found


def copied_bundle(folder: Path) -> Path:
    return Path(shutil.copytree(bundle().folder, folder / "copy"))


def x_of(n: int, length: int = LENGTH) -> np.ndarray:
    return sample(n, length).numpy()


def test_outputs_are_torchs_for_any_batch_whichever_adapter_ran_before(session: Session) -> None:
    ways = [*METHODS, None]
    bound = {method: session.bind(method) for method in ways}
    for n in (2, 1, 8, 3):
        for method in (*ways, *reversed(ways)):
            wanted = by_torch(x_of(n), method)
            np.testing.assert_allclose(session.run(x_of(n), method), wanted, **CLOSE)
            np.testing.assert_allclose(bound[method].run(x_of(n)), wanted, **CLOSE)


def test_the_export_says_what_it_found() -> None:
    assert max(bundle().differences.values()) <= 1e-5
    manifest = bundle().manifest
    assert (manifest.target, manifest.form, manifest.runtime, manifest.opset) == ("executorch", "fact", VERSION, None)
    assert manifest.graphs["base"].inputs[0].shape == ("batch", 3, LENGTH) and manifest.max_rank == 5
    assert verify(bundle().folder, key=keys()[1]) == {"base": None} | {f"adapters/{m}": None for m in sorted(METHODS)}
    assert not [operator for operator in bundle().portable if "convolution" in operator]


def test_an_adapter_is_kilobytes_and_the_program_tells_nothing_of_this_machine() -> None:
    for name in METHODS:
        data, tensors = (bundle().bytes[f"adapters/{name}/{file}"] for file in ("base.ptd", "adapter.safetensors"))
        assert data <= 2 * tensors  # groups repeat A; each piece begins at a multiple of 128 bytes
    program = (bundle().folder / "base" / "base.pte").read_bytes()
    words = (b".py", str(Path.home()).encode(), str(Path.cwd()).encode(), b"site-packages")
    assert not [word for word in words if len(word) > 1 and word in program]


def test_keys_are_hashes_of_what_xnnpack_packs_or_our_own_names() -> None:
    """What ExecuTorch does not document, and a new version may change."""
    base = read_base(bundle().folder, check_signature=False)
    layout = DataLayout.from_json(base.files["base.slots.json"], "base.slots.json")
    keys_of = {piece.key for piece in layout.pieces}
    hashes = {key for key in keys_of if re.fullmatch("[0-9a-f]{64}", key)}
    assert hashes and all(re.fullmatch(r"constants\.slot\d+", key) for key in keys_of - hashes)
    firsts, first = {}, 2**23
    for slot in base.manifest.slots:
        firsts[slot.name] = first
        first += int(np.prod([int(size) for size in slot.shape]))
    for piece in layout.pieces:
        if piece.key in hashes:
            exported = -(firsts[piece.slot] + piece.indices()).astype("<f4")
            assert hashlib.sha256(exported.tobytes()).hexdigest() == piece.key


def test_loading_unloading_and_binding(session: Session, tmp_path: Path) -> None:
    own = Session(copied_bundle(tmp_path), key=keys()[1])
    with pytest.raises(ValueError, match="'dora' is not loaded"):
        own.run(x_of(1), "dora")
    own.load("dora")
    bound, wanted = own.bind("dora"), session.run(x_of(2), "dora")
    own.unload("dora")
    np.testing.assert_array_equal(bound.run(x_of(2)), wanted)
    elsewhere = tmp_path / "dora"
    shutil.move(tmp_path / "copy" / "adapters" / "dora", elsewhere)
    own.load("dora", elsewhere)
    shutil.rmtree(elsewhere)  # what runs is in memory
    np.testing.assert_array_equal(own.run(x_of(2), "dora"), wanted)
    assert own.selftest("dora") <= 1e-5
    (tmp_path / "copy" / "base" / "base.pte").write_bytes(b"")
    np.testing.assert_array_equal(own.run(x_of(2), "dora"), wanted)


def test_sizes_that_the_program_was_not_planned_for_are_refused(session: Session) -> None:
    with pytest.raises(ValueError, match=r"x: \(9, 3, 40\), and batch may be 1 to 8"):
        session.run(x_of(9))
    with pytest.raises(ValueError, match=r"x must be float32 \(batch, 3, 40\), got \(1, 3, 39\)"):
        session.run(x_of(1, 39))
    with pytest.raises(ValueError, match="ExecuTorch's threads are the process's"):
        Session(bundle().folder, key=keys()[1], threads=77)


def test_a_data_file_of_other_values_is_refused(tmp_path: Path) -> None:
    folder = copied_bundle(tmp_path) / "adapters" / "dora"
    manifest = from_json((folder / "manifest.json").read_bytes(), "adapter", "manifest.json")
    files = {name: (folder / name).read_bytes() for name in manifest.files}
    files["base.ptd"] = (tmp_path / "copy" / "base" / "base.ptd").read_bytes()
    write_folder(folder, replace(manifest, files=entries(files)), files, keys()[0])
    own = Session(tmp_path / "copy", key=keys()[1])
    with pytest.raises(BundleError, match=r"dora/base\.ptd: not the tensors of adapter\.safetensors"):
        own.load("dora")
    assert own.loaded == ()


def test_a_base_that_is_not_what_it_says_is_refused(tmp_path: Path) -> None:
    folder = copied_bundle(tmp_path) / "base"
    manifest = from_json((folder / "manifest.json").read_bytes(), "base", "manifest.json")
    files = {name: (folder / name).read_bytes() for name in manifest.files}
    layout = json.loads(files["base.slots.json"])

    def refused(says: str, change: dict[str, bytes], **changes: object) -> None:
        now = {**files, **change}
        write_folder(folder, replace(manifest, files=entries(now), **changes), now, keys()[0])
        with pytest.raises(BundleError, match=says):
            Session(tmp_path / "copy", key=keys()[1])

    of_other_key = {**layout, "pieces": [{**layout["pieces"][0], "key": "0" * 64}, *layout["pieces"][1:]]}
    refused("takes no .* from a data file", {"base.slots.json": json.dumps(of_other_key).encode()})
    wider = {**layout, "sizes": {"batch": [1, 9]}}
    refused(r"x is planned for \(8, 3, 40\)", {"base.slots.json": json.dumps(wider).encode()})
    refused(
        "the sizes of its layout are not the free ones: batch",
        {"base.slots.json": json.dumps({**layout, "sizes": {}}).encode()},
    )
    refused("ExecuTorch refuses it", {"base.pte": bytes(64) + files["base.pte"][64:]})
    refused("exported for ExecuTorch 1.4.0, and this is 1.5.1", {}, runtime="1.4.0")


def test_another_version_neither_writes_nor_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", lambda name: "1.6.0")
    with pytest.raises(ImportError, match=r"ExecuTorch 1\.6\.0 is installed.*executorch==1\.5\.1"):
        export(adapted("first"), tmp_path / "b", sample(2, LENGTH), target="executorch")
    with pytest.raises(BundleError, match=r"exported for ExecuTorch 1\.5\.1, and this is 1\.6\.0"):
        Session(bundle().folder, key=keys()[1])
    assert not list(tmp_path.iterdir())


def test_the_version_is_pinned_once() -> None:
    root = Path(__file__).parents[2]
    for file in ("pyproject.toml", "constraints.txt"):
        assert re.findall(r"executorch==([\d.]+)", (root / file).read_text(encoding="utf-8")) == [VERSION]


def test_an_adapter_that_comes_later(tmp_path: Path) -> None:
    folder = copied_bundle(tmp_path)
    model = adapted()
    with audiolora.enabled():
        for name, r in (("later", 1), ("larger", 9)):
            model.add_adapter(name, LoraConfig(r=r, use_dora=True, target_modules=["plain", "up"]))
    randomise(model, seed=5)
    add_adapter(model, folder, "later", key=keys()[0])
    with pytest.raises(ValueError, match="export the base again with a larger max_rank"):
        add_adapter(model, folder, "larger", key=keys()[0])
    own = Session(folder, key=keys()[1])
    own.load("later")
    model.set_adapter("later")
    with torch.no_grad():
        wanted = model.double().eval()(sample(3, LENGTH).double()).numpy()
    np.testing.assert_allclose(own.run(x_of(3), "later"), wanted, **CLOSE)


def small() -> nn.Module:
    torch.manual_seed(0)
    model = audiolora.adapt(nn.Sequential(nn.Conv1d(3, 4, 3), nn.ReLU(), nn.Conv1d(4, 2, 3)), r=2)
    randomise(model)
    return model.eval()


def test_the_time_may_be_free_instead_of_the_batch(tmp_path: Path) -> None:
    model = small()
    dynamic = {"input": {2: "time"}}
    made = export(model, tmp_path / "b", sample(1), target="executorch", dynamic=dynamic, largest={"time": 100})
    assert made.manifest.graphs["base"].outputs[0].shape == (1, 2, "time - 4")
    own = Session(tmp_path / "b")
    own.load("default")
    for length in (100, 7, 40):
        with torch.no_grad():
            wanted = model(sample(1, length)).numpy()
        np.testing.assert_allclose(own.run(x_of(1, length), "default"), wanted, **CLOSE)
    for length in (101, 4):
        with pytest.raises(ValueError, match=r"time may be \d+ to 100"):
            own.run(x_of(1, length))


def test_one_adapter_merged(tmp_path: Path) -> None:
    model = small()
    export(model, tmp_path / "b", sample(), target="executorch", form="merged", dynamic={})
    own = Session(tmp_path / "b")
    assert own.manifest.slots == () and not (tmp_path / "b" / "base" / "base.ptd").exists()
    with torch.no_grad():
        np.testing.assert_allclose(own.run(x_of(2)), model(sample()).numpy(), **CLOSE)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"form": "wsum"}, "has the forms 'fact' .* and 'merged'"),
        ({"web": True}, "no variant for browsers"),
        ({"dynamic": {"input": {0: "batch", 2: "time"}}}, "XNNPACK takes one free size"),
        ({"largest": {"time": 9}}, "largest names time, and the free sizes are batch"),
        ({"largest": {"batch": 2}}, r"largest\['batch'\] must be above the example's 2"),
        ({"target": "tflite"}, "target must be one of onnx, executorch, got 'tflite'"),
        ({"target": "onnx", "largest": {"batch": 9}}, "largest is for target 'executorch'"),
    ],
)
def test_what_this_target_does_not_have_is_refused(arguments: dict, says: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=says):
        export(small(), tmp_path / "b", sample(), **{"target": "executorch", **arguments})
    assert not list(tmp_path.iterdir())


def test_an_adapted_norm_is_refused_by_name(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4))
    with audiolora.enabled():
        model = get_peft_model(net, LoraConfig(r=2, target_modules=["0"], modules_to_save=["1"]))
    randomise(model)
    with pytest.raises(ValueError, match=r"1\.(bias|weight): taken by batch_norm, .*target='onnx'"):
        export(model, tmp_path / "b", sample(), target="executorch")
