"""examples/executorch: compiled against the wheel's headers and libraries, and its numbers compared with torch's."""

from __future__ import annotations

import shutil
import subprocess
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

from tests.executorch.bundles import LENGTH, bundle, by_torch
from tests.export.networks import METHODS, sample

pytest.importorskip("executorch", reason="needs ExecuTorch: make test-executorch")
pytestmark = pytest.mark.slow

SOURCE = Path(__file__).parents[2] / "examples" / "executorch" / "run.cpp"
LIBRARIES = ("executorch", "executorch_backend_xnnpack", "executorch_kernels_optimized", "executorch_threadpool")
WAYS = [None, *METHODS]


def compiled(out: Path, *more: str) -> Path:
    if shutil.which("g++") is None:
        pytest.skip("no g++ on this machine")
    wheel = Path(str(metadata.distribution("executorch").locate_file("executorch")))
    if not (wheel / "lib" / "libexecutorch.so").is_file():
        pytest.skip("this machine's wheel of ExecuTorch has no C++ library")
    headers = [wheel / "include", wheel / "include/executorch/runtime/core/portable_type/c10"]
    subprocess.run(
        ["g++", "-std=c++17", "-w", "-O1", "-DC10_USING_CUSTOM_GENERATED_MACROS", *more, *(f"-I{h}" for h in headers)]
        + [str(SOURCE), "-o", str(out), f"-L{wheel / 'lib'}", f"-Wl,-rpath,{wheel / 'lib'},--no-as-needed"]
        + [f"-l{name}" for name in LIBRARIES],
        check=True,
    )
    return out


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(tmp_path_factory.mktemp("cpp") / "run")


def data(method: str | None) -> Path:
    return bundle().folder / ("base" if method is None else f"adapters/{method}") / "base.ptd"


def run(program: Path, x: np.ndarray, *files: Path) -> subprocess.CompletedProcess[bytes]:
    words = [program, bundle().folder / "base" / "base.pte", "x".join(map(str, x.shape)), *files]
    return subprocess.run([str(word) for word in words], input=x.tobytes(), capture_output=True)


def outputs(program: Path, x: np.ndarray, *files: Path) -> np.ndarray:
    done = run(program, x, *files)
    assert done.returncode == 0, done.stderr
    return np.array([line.split() for line in done.stdout.splitlines()], np.float32).reshape(len(files), len(x), -1)


@pytest.mark.parametrize("n", [1, 8])
def test_its_numbers_are_torchs_with_all_adapters_loaded_at_once(program: Path, n: int) -> None:
    x = sample(n, LENGTH).numpy()
    for y, method in zip(outputs(program, x, *map(data, WAYS)), WAYS, strict=True):
        np.testing.assert_allclose(y, by_torch(x, method), rtol=0, atol=2e-5)


def test_xnnpacks_cache_of_weights_would_run_the_wrong_adapter(tmp_path: Path) -> None:
    """Why the program turns it off; should this fail one day, the cache has changed, and docs/edge.md with it."""
    x, with_cache = sample(1, LENGTH).numpy(), compiled(tmp_path / "run", "-DWEIGHTS_CACHE=true")
    if run(with_cache, x, data(None), data("dora")).returncode == 0:  # with some networks it crashes
        _, second = outputs(with_cache, x, data(None), data("dora"))
        assert np.abs(second - by_torch(x, "dora")).max() > 1e-3


def test_without_its_data_a_program_does_not_run(program: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.ptd").write_bytes(b"")
    done = run(program, sample(1, LENGTH).numpy(), tmp_path / "empty.ptd")
    assert done.returncode == 2 and b"refuses it" in done.stderr and not done.stdout
