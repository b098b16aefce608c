"""What the C program needs, put together in a folder as ONNX Runtime's release archive has it: include/ and lib/.

The library is the onnxruntime wheel's, so that C and Python run the same code. The wheel has no headers: they are
Debian's (libonnxruntime-dev, MIT), from the system or, unpacked and not installed, from its archive; a header may be
older than the library.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import onnxruntime
import pytest

from audiolora.packages import FetchError, cache_dir, fetch_debian

# The first Debian that has it. Its headers are of ONNX Runtime 1.21.
SUITE = "trixie"


def toolchain(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``folder`` with include/ and lib/; skips by name where something cannot be had."""
    if shutil.which("gcc") is None or shutil.which("make") is None:
        pytest.skip("no gcc or make on this machine")
    include, lib = folder / "include", folder / "lib"
    for made in (include, lib):
        made.mkdir(parents=True)
    (capi,) = (Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*")
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
        (lib / name).symlink_to(capi)
    try:
        _put(include, "onnxruntime/onnxruntime_c_api.h", lambda: _from_suite("libonnxruntime-dev", folder, monkeypatch))
        _put(include, "cjson/cJSON.h", lambda: fetch_debian("libcjson-dev"))
        _put(include, "openssl/evp.h", lambda: fetch_debian("libssl-dev"))
        for name, package in (("libcjson.so.1", "libcjson1"), ("libcrypto.so.3", "libssl3")):
            _put_library(lib, name, package)
    except FetchError as error:
        pytest.skip(f"a header of the C program cannot be had here: {error}")
    return folder


def _put(include: Path, header: str, fetch: Callable[[], Path]) -> None:
    """The header's folder, from the system if it is there."""
    if (Path("/usr/include") / header).is_file():
        return
    found = next(iter(sorted((fetch() / "usr/include").rglob(Path(header).name))))
    (include / Path(header).parent).symlink_to(found.parent)


def _put_library(lib: Path, name: str, package: str) -> None:
    there = list(Path("/usr/lib").glob(f"*/{name}")) or sorted(fetch_debian(package).rglob(name))
    for link in (name, name.rpartition(".")[0]):
        (lib / link).symlink_to(there[0].resolve())


def _from_suite(package: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of `SUITE`, from the mirror that this machine uses, checked against Debian's signed lists."""
    asked = ["apt-get", "indextargets", "--format", "$(ORIGIN) $(REPO_URI)", "Created-By: Packages"]
    listed = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.split("\n")
    mirrors = [line.split()[1] for line in listed if line.startswith("Debian ") and line.endswith("/debian/")]
    if not mirrors:
        raise FetchError(f"{package}: this machine's apt has no Debian archive; install onnxruntime_c_api.h yourself")
    (folder / "sources.list").write_text(f"deb {mirrors[0]} {SUITE} main\n")
    lists = folder / "lists"
    (lists / "partial").mkdir(parents=True)
    settings = {"Etc::sourcelist": folder / "sources.list", "Etc::sourceparts": "/dev/null", "State::Lists": lists}
    (folder / "apt.conf").write_text("".join(f'Dir::{name} "{path}";\n' for name, path in settings.items()))
    with monkeypatch.context() as changed:
        changed.setenv("APT_CONFIG", str(folder / "apt.conf"))
        changed.setenv("AUDIOLORA_CACHE", str(cache_dir() / SUITE))
        return fetch_debian(package)


def build(program: Path, ort: Path) -> Path:
    """The program, compiled by its own Makefile with every warning an error."""
    shutil.copytree(program, ort / "c")
    done = subprocess.run(
        ["make", "-C", str(ort / "c"), "run", f"ORT={ort}", "CFLAGS=-O1 -g -Werror"],
        env={**os.environ, "LC_ALL": "C"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return ort / "c" / "run"
