"""Whatever is flipped, cut, added, renamed, removed or swapped in a bundle: refused, or the very same outputs."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from audiolora.edge import Session
from audiolora.export.bundle import entries, read_adapter, read_base
from audiolora.export.errors import BundleError
from audiolora.export.signing import make_keys
from tests.export.small_bundle import factors, sample, write_adapter, write_base

Mutation = Callable[[np.random.Generator, Path], None]


def some_file(draw: np.random.Generator, bundle: Path) -> Path:
    files = sorted(path for path in bundle.rglob("*") if path.is_file())
    return files[draw.integers(len(files))]


def flip(draw: np.random.Generator, bundle: Path) -> None:
    path = some_file(draw, bundle)
    data = bytearray(path.read_bytes())
    for _ in range(draw.integers(1, 4)):
        data[draw.integers(len(data))] ^= 1 << int(draw.integers(8))
    path.write_bytes(data)


def cut(draw: np.random.Generator, bundle: Path) -> None:
    path = some_file(draw, bundle)
    data = path.read_bytes()
    path.write_bytes(data[: draw.integers(len(data))])


def insert(draw: np.random.Generator, bundle: Path) -> None:
    path = some_file(draw, bundle)
    data, at = path.read_bytes(), int(draw.integers(path.stat().st_size + 1))
    path.write_bytes(data[:at] + draw.bytes(int(draw.integers(1, 9))) + data[at:])


def rename(draw: np.random.Generator, bundle: Path) -> None:
    paths = sorted(bundle.rglob("*"))
    path = paths[draw.integers(len(paths))]
    path.rename(path.with_name(["x", "base.onnx2", "user9", ".hidden", "manifest.json.bak"][draw.integers(5)]))


def remove(draw: np.random.Generator, bundle: Path) -> None:
    some_file(draw, bundle).unlink()


def swap(draw: np.random.Generator, bundle: Path) -> None:
    one, other = some_file(draw, bundle), some_file(draw, bundle)
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)


def swap_folders(draw: np.random.Generator, bundle: Path) -> None:
    (bundle / "adapters" / "user1").rename(bundle / "kept")
    (bundle / "adapters" / "user2").rename(bundle / "adapters" / "user1")
    (bundle / "kept").rename(bundle / "adapters" / "user2")


MUTATIONS: dict[Mutation, float] = {
    flip: 0.5,
    cut: 0.15,
    insert: 0.1,
    rename: 0.1,
    remove: 0.05,
    swap: 0.09,
    swap_folders: 0.01,
}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, tuple[Path, bytes | None]]:
    """Signed or not: the bundle and its public key."""
    private, public = make_keys(tmp_path_factory.mktemp("keys") / "ours")
    made = {}
    for signed in (False, True):
        folder = tmp_path_factory.mktemp("bundle")
        write_base(folder, key=private if signed else None)
        for i, name in enumerate(("user1", "user2")):
            write_adapter(folder, name, factors(i), key=private if signed else None)
        made[signed] = (folder, public.read_bytes() if signed else None)
    return made


def outputs(bundle: Path, key: bytes | None) -> dict[str, np.ndarray | None]:
    """What each adapter gives; None where it is refused. Nothing but a refusal may come out."""
    x, found = sample(), dict.fromkeys(("base", "user1", "user2"))
    try:
        session = Session(bundle, key=key, threads=1)
        found["base"] = session.run(x)
    except BundleError:
        return found
    for name in ("user1", "user2"):
        try:
            session.load(name)
            found[name] = session.run(x, name)
        except BundleError:
            pass
    return found


def mutate_and_compare(bundle: Path, key: bytes | None, work: Path, count: int, seed: int) -> int:
    """How many of the mutations were refused somewhere."""
    draw = np.random.default_rng(seed)
    wanted = outputs(bundle, key)
    running = Session(bundle, key=key, threads=1)
    running.load("user1")
    kinds, odds = list(MUTATIONS), list(MUTATIONS.values())
    refused = 0
    for i in range(count):
        broken = work / "broken"
        shutil.rmtree(broken, ignore_errors=True)
        shutil.copytree(bundle, broken)
        kind = kinds[draw.choice(len(kinds), p=odds)]
        kind(draw, broken)
        found = outputs(broken, key)
        for name, y in found.items():
            assert y is None or np.array_equal(y, wanted[name]), (i, kind.__name__, name)
        refused += any(y is None for y in found.values())
        try:
            running.load("user1", broken / "adapters" / "user1")
        except BundleError:
            pass
        assert np.array_equal(running.run(sample(), "user1"), wanted["user1"]), (i, kind.__name__)
    return refused


@pytest.mark.parametrize("signed", [False, True])
def test_a_hundred_mutations(bundles: dict[bool, tuple[Path, bytes | None]], signed: bool, tmp_path: Path) -> None:
    assert mutate_and_compare(*bundles[signed], tmp_path, 100, seed=1) > 90


@pytest.mark.parametrize("count", [150, pytest.param(10_000, marks=pytest.mark.slow)])
def test_who_puts_the_hashes_right_again_meets_the_parsers(
    bundles: dict[bool, tuple[Path, bytes | None]], tmp_path: Path, count: int
) -> None:
    """Without a signature anybody may write an adapter; it is read, or refused, and nothing else happens."""
    draw, base = np.random.default_rng(0), read_base(bundles[False][0])
    folder = tmp_path / "user1"
    shutil.copytree(bundles[False][0] / "adapters" / "user1", folder)
    tensors, manifest = (folder / "adapter.safetensors").read_bytes(), (folder / "manifest.json").read_bytes()
    for _ in range(count):
        data, text = bytearray(tensors), bytearray(manifest)
        broken = (data, text)[draw.integers(2)]
        for _ in range(draw.integers(1, 3)):
            broken[draw.integers(min(len(broken), 700))] ^= 1 << int(draw.integers(8))
        (folder / "adapter.safetensors").write_bytes(data)
        before = entries({"adapter.safetensors": tensors})["adapter.safetensors"].sha256.encode()
        text = text.replace(before, entries({"": bytes(data)})[""].sha256.encode())
        (folder / "manifest.json").write_bytes(text)
        (folder / "manifest.sha256").write_text(f"{entries({'': bytes(text)})[''].sha256}  manifest.json\n")
        try:
            read = read_adapter(folder, base)
        except BundleError:
            continue
        assert {name: value.shape for name, value in read.tensors.items()} == {k: v.shape for k, v in factors().items()}
        assert all(np.isfinite(value).all() for value in read.tensors.values())


@pytest.mark.slow
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("seed", range(2, 6))
def test_thousands_of_mutations(
    bundles: dict[bool, tuple[Path, bytes | None]], signed: bool, seed: int, tmp_path: Path
) -> None:
    assert mutate_and_compare(*bundles[signed], tmp_path, 500, seed=seed) > 450
