"""Everything on the refuse list, one test each; what is as it was written is read back as it was."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from audiolora.export import bundle, make_keys
from audiolora.export.errors import BundleError
from audiolora.export.tensors import write_tensors
from tests.export.small_bundle import factors, write_adapter, write_base


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_keys(tmp_path_factory.mktemp("keys") / "ours")


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """An unsigned bundle with one adapter."""
    write_base(tmp_path)
    write_adapter(tmp_path)
    return tmp_path


def read(folder: Path, name: str = "user1", **how: Any) -> bundle.Adapter:
    return bundle.read_adapter(bundle.adapter_folder(folder, name), bundle.read_base(folder, **how), **how)


def hashed(folder: Path) -> None:
    """As an attacker would: the hash of the manifest is put right after a change of it."""
    digest = hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
    (folder / "manifest.sha256").write_bytes(f"{digest}  manifest.json\n".encode())


def changed(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((folder / "manifest.json").read_bytes())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    hashed(folder)


def test_what_was_written_is_read(small: Path) -> None:
    found = read(small)
    assert found.manifest.id == "user1" and found.manifest.rank == 2
    for name, tensor in factors().items():
        np.testing.assert_array_equal(found.tensors[name], tensor)
    assert bundle.verify(small) == {"base": None, "adapters/user1": None}


def test_a_signed_bundle_wants_its_key(tmp_path: Path, keys: tuple[Path, Path]) -> None:
    private, public = keys
    write_base(tmp_path, key=private)
    write_adapter(tmp_path, key=private)
    assert read(tmp_path, key=public).manifest.id == "user1"
    assert read(tmp_path, key=public.read_bytes()).manifest.id == "user1"
    assert read(tmp_path, check_signature=False).manifest.id == "user1"
    with pytest.raises(BundleError, match="it is signed; give the public key"):
        read(tmp_path)


def test_another_key_is_refused(tmp_path: Path, keys: tuple[Path, Path]) -> None:
    write_base(tmp_path, key=keys[0])
    _, other = make_keys(tmp_path / "other")
    with pytest.raises(BundleError, match="signature is not that of"):
        bundle.read_base(tmp_path, key=other)


def test_a_manifest_that_was_changed_after_signing_is_refused(tmp_path: Path, keys: tuple[Path, Path]) -> None:
    write_base(tmp_path, key=keys[0])
    changed(tmp_path / "base", lambda manifest: manifest.update(max_rank=4096))
    with pytest.raises(BundleError, match="signature is not that of"):
        bundle.read_base(tmp_path, key=keys[1])


def test_a_signature_that_was_taken_away_is_refused(tmp_path: Path, keys: tuple[Path, Path]) -> None:
    write_base(tmp_path, key=keys[0])
    (tmp_path / "base" / "manifest.sig").unlink()
    with pytest.raises(BundleError, match="not signed, and a key was given"):
        bundle.read_base(tmp_path, key=keys[1])


def test_the_signature_of_another_folder_is_refused(tmp_path: Path, keys: tuple[Path, Path]) -> None:
    write_base(tmp_path, key=keys[0])
    folder = write_adapter(tmp_path, key=keys[0])
    shutil.copy(tmp_path / "base" / "manifest.sig", folder / "manifest.sig")
    with pytest.raises(BundleError, match="signature is not that of"):
        read(tmp_path, key=keys[1])


@pytest.mark.parametrize("file", ["base.onnx", "selftest.safetensors"])
def test_a_file_with_another_hash_is_refused(small: Path, file: str) -> None:
    data = bytearray((small / "base" / file).read_bytes())
    data[len(data) // 2] ^= 1
    (small / "base" / file).write_bytes(data)
    with pytest.raises(BundleError, match="sha256 is not the manifest's"):
        bundle.read_base(small)


@pytest.mark.parametrize("cut", [-1, 1])
def test_a_file_of_another_size_is_refused(small: Path, cut: int) -> None:
    path = small / "adapters" / "user1" / "adapter.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-1] if cut < 0 else data + b"\0")
    with pytest.raises(BundleError, match="cut off or changed"):
        read(small)


def test_a_manifest_with_another_hash_is_refused(small: Path) -> None:
    path = small / "base" / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b'"max_rank": 8', b'"max_rank": 9'))
    with pytest.raises(BundleError, match="not the file that manifest.sha256 has the hash of"):
        bundle.read_base(small)


@pytest.mark.parametrize("name", ["../base.onnx", "a/b", "a\\b", "..", "", ".hidden", "/etc/passwd", "manifest.json"])
def test_a_file_name_with_a_path_is_refused(small: Path, name: str) -> None:
    changed(small / "base", lambda manifest: manifest["files"].update({name: manifest["files"]["base.onnx"]}))
    with pytest.raises(BundleError, match="plain name, no path"):
        bundle.read_base(small)


@pytest.mark.parametrize("name", ["../user1", "a/b", "a\\b", "..", "", ".", "user1\n"])
def test_an_adapter_id_with_a_path_is_refused(small: Path, name: str) -> None:
    with pytest.raises(BundleError, match="no separators"):
        bundle.adapter_folder(small, name)


@pytest.mark.parametrize("link", [os.symlink, os.link])
@pytest.mark.parametrize("file", ["manifest.json", "adapter.safetensors"])
def test_links_are_refused(small: Path, link: Callable[..., None], file: str) -> None:
    path = small / "adapters" / "user1" / file
    outside = small / "outside"
    shutil.move(path, outside)
    link(outside, path)
    with pytest.raises(BundleError, match="a link"):
        read(small)


@pytest.mark.parametrize("folder", ["base", "adapters", "adapters/user1"])
def test_linked_folders_are_refused(small: Path, folder: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = tmp_path_factory.mktemp("outside") / Path(folder).name
    shutil.move(small / folder, outside)
    os.symlink(outside, small / folder)
    with pytest.raises(BundleError, match="a link"):
        read(small)


def test_a_pipe_is_refused_and_not_waited_for(small: Path) -> None:
    path = small / "base" / "base.onnx"
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(BundleError, match="no regular file"):
        bundle.read_base(small)


def test_a_file_that_is_not_in_the_manifest_is_refused(small: Path) -> None:
    (small / "base" / "weights.bin").write_bytes(b"x")
    with pytest.raises(BundleError, match="weights.bin is not in the manifest"):
        bundle.read_base(small)


def test_a_missing_file_is_refused(small: Path) -> None:
    (small / "base" / "base.onnx").unlink()
    with pytest.raises(BundleError, match="cannot be read: No such file"):
        bundle.read_base(small)


def test_a_renamed_adapter_is_refused(small: Path) -> None:
    (small / "adapters" / "user1").rename(small / "adapters" / "user2")
    with pytest.raises(BundleError, match="says it is 'user1'"):
        read(small, "user2")


def test_an_adapter_of_another_base_is_refused(small: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other")
    write_base(other, id="other")
    shutil.copytree(small / "adapters", other / "adapters")
    with pytest.raises(BundleError, match="made for another base"):
        read(other)


TENSORS: dict[str, tuple[Callable[[dict[str, np.ndarray]], object], str]] = {
    "a name that the base has no slot for": (lambda t: t.update(x=np.zeros((1, 3, 9), np.float32)), "no such slot"),
    "half an adapter": (lambda t: t.pop("conv.weight.lora_B"), "conv.weight.lora_B: missing"),
    "mixed ranks": (lambda t: t.update({"conv.weight.lora_B": np.ones((4, 3), np.float32)}), "2 for r0"),
    "excess rank": (lambda t: t.update(factors(rank=9)), "rank 9, and this base takes 1 to 8"),
    "rank 0": (lambda t: t.update(factors(rank=0)), "rank 0"),
    "another shape": (lambda t: t.update({"conv.bias.delta": np.ones(5, np.float32)}), "the slot is .4."),
    "another dtype": (lambda t: t.update({"conv.bias.delta": np.ones(4, np.float16)}), "float16"),
    "another number of axes": (lambda t: t.update({"conv.bias.delta": np.ones((4, 1), np.float32)}), "the slot is"),
    "NaN": (lambda t: t["conv.weight.lora_A"].__setitem__((0, 0), np.nan), "not finite"),
    "infinity": (lambda t: t["conv.weight.lora_B"].__setitem__((0, 0), -np.inf), "not finite"),
}


@pytest.mark.parametrize("what", TENSORS)
def test_tensors_that_are_not_the_slots_are_refused(tmp_path: Path, what: str) -> None:
    change, message = TENSORS[what]
    tensors = factors()
    change(tensors)
    write_base(tmp_path)
    write_adapter(tmp_path, tensors=tensors)
    with pytest.raises(BundleError, match=message):
        read(tmp_path)


def test_every_wrong_tensor_is_named_at_once(tmp_path: Path) -> None:
    write_base(tmp_path)
    write_adapter(tmp_path, tensors={"conv.bias.delta": np.ones(5, np.float32), "y": np.ones(1, np.float32)})
    with pytest.raises(BundleError) as error:
        read(tmp_path)
    assert all(name in str(error.value) for name in ("lora_A: missing", "lora_B: missing", "y: the base", "(5,)"))


def test_a_rank_that_the_manifest_says_otherwise_is_refused(tmp_path: Path) -> None:
    write_base(tmp_path)
    write_adapter(tmp_path, rank=3)
    with pytest.raises(BundleError, match="rank 3 in the manifest, 2 in the tensors"):
        read(tmp_path)


def test_verify_says_what_is_wrong_with_each_part(small: Path) -> None:
    folder = write_adapter(small, "user2")
    (folder / "adapter.safetensors").write_bytes(write_tensors(factors(seed=5)))
    found = bundle.verify(small)
    assert found["base"] is None and found["adapters/user1"] is None
    assert "sha256 is not the manifest's" in str(found["adapters/user2"])
    (small / "base" / "base.onnx").unlink()
    assert list(bundle.verify(small)) == ["base"]
    assert "no bundle" in str(bundle.verify(small / "adapters")["base"])


def test_a_base_that_is_replaced_leaves_its_adapters_behind(small: Path) -> None:
    write_base(small, max_rank=9)
    assert "made for another base" in str(bundle.verify(small)["adapters/user1"])


def test_a_write_that_fails_leaves_what_was_there(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_base(small, max_rank=9)
    assert bundle.verify(small) == {"base": None, "adapters/user1": None}
    assert sorted(path.name for path in small.iterdir()) == ["adapters", "base"]
