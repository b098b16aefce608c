"""examples/c: compiled, run, and its numbers compared with Python's over the same library; what it refuses."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from audiolora.edge import Session
from audiolora.export import export, make_keys
from audiolora.export.tensors import read_tensors
from tests.edge.c_toolchain import build, toolchain
from tests.export.networks import adapted, sample

pytestmark = pytest.mark.slow
PROGRAM = Path(__file__).parents[2] / "examples" / "c"
ADAPTERS = ("first", "dora")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        yield build(PROGRAM, toolchain(tmp_path_factory.mktemp("c") / "ort", patch))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a signed bundle, one that is not, and the keys."""
    folder = tmp_path_factory.mktemp("site")
    private, _ = make_keys(folder / "ours")
    make_keys(folder / "other")
    model = adapted(*ADAPTERS)
    export(model, folder / "signed", sample(), key=private)
    export(model, folder / "plain", sample())
    return folder


def run(program: Path, *words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([program, *map(str, words)], capture_output=True, text=True)


@pytest.mark.parametrize("adapter", [None, *ADAPTERS])
def test_its_numbers_are_pythons(program: Path, site: Path, adapter: str | None) -> None:
    session = Session(site / "plain", threads=1)
    stored = read_tensors((site / "plain/base/selftest.safetensors").read_bytes(), "stored")
    if adapter is not None:
        session.load(adapter)
    wanted = session.run(stored["base.input.x"], adapter)
    for words in ([site / "plain"], ["-k", site / "ours.pub.pem", site / "signed"]):
        done = run(program, *([] if adapter is None else ["-a", adapter]), *words)
        assert done.returncode == 0, done.stderr
        who, name, *values = done.stdout.split()
        assert (who, name) == (adapter or "base", session.manifest.graphs["base"].outputs[0].name)
        found = np.array(values, np.float32).reshape(np.shape(wanted))
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6)


def test_the_adapters_differ(program: Path, site: Path) -> None:
    runs = [run(program, *words, site / "plain") for words in ([], *(["-a", adapter] for adapter in ADAPTERS))]
    outputs = {done.stdout.split(maxsplit=1)[1] for done in runs}
    assert len(outputs) == 3


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def exchange(bundle: Path) -> None:
    shutil.rmtree(bundle / "adapters/dora")
    (bundle / "adapters/first").rename(bundle / "adapters/dora")


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "a flipped bit in the graph": (lambda b: flip(b / "base/base.onnx"), "base.onnx: its size or sha256"),
    "a flipped bit in the adapter": (lambda b: flip(b / "adapters/dora/base.onnx_adapter"), "its size or sha256"),
    "a flipped bit in a manifest": (lambda b: flip(b / "adapters/dora/manifest.json"), "manifest.sha256"),
    "a flipped bit in a signature": (lambda b: flip(b / "base/manifest.sig"), "the signature is not that of"),
    "no signature": (lambda b: (b / "adapters/dora/manifest.sig").unlink(), "manifest.sig: cannot be read"),
    "half of a file": (lambda b: (b / "base/base.onnx").write_bytes(b"\x08"), "its size or sha256"),
    "another adapter's folder": (exchange, "it is first"),
}


@pytest.mark.parametrize("damage", REFUSED)
def test_what_is_refused(program: Path, site: Path, tmp_path: Path, damage: str) -> None:
    shutil.copytree(site / "signed", tmp_path / "b")
    do, says = REFUSED[damage]
    do(tmp_path / "b")
    done = run(program, "-k", site / "ours.pub.pem", "-a", "dora", tmp_path / "b")
    assert (done.returncode, done.stdout) == (1, "") and says in done.stderr


def test_a_signature_needs_its_key(program: Path, site: Path) -> None:
    for words, says in (
        ([site / "signed"], "it is signed; give the public key"),
        (["-k", site / "other.pub.pem", site / "signed"], "the signature is not that of"),
        (["-k", site / "ours.pub.pem", site / "plain"], "manifest.sig: cannot be read"),
    ):
        done = run(program, *words)
        assert (done.returncode, done.stdout) == (1, "") and says in done.stderr, done.stderr


def test_an_adapter_of_another_base_is_refused(program: Path, site: Path, tmp_path: Path) -> None:
    shutil.copytree(site / "plain", tmp_path / "b")
    shutil.copytree(site / "signed/adapters/first", tmp_path / "b/adapters/first", dirs_exist_ok=True)
    (tmp_path / "b/adapters/first/manifest.sig").unlink()
    done = run(program, "-a", "first", tmp_path / "b")
    assert (done.returncode, done.stdout) == (1, "") and "made for another base" in done.stderr
