"""Tar shards: written by tarfile; read by us as by tarfile, and by webdataset where it is installed."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile

from audiolora.speech.data.audio import read_audio
from audiolora.speech.data.layouts import tars as tars_module
from audiolora.speech.data.layouts.tars import expand_braces
from audiolora.speech.data.manifests import DataError, read_all, read_utterances
from audiolora.speech.data.sources import Segment, TarMember


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("AUDIOLORA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def sound(seed: int, form: str = "FLAC") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.random.default_rng(seed).uniform(-0.5, 0.5, 800), 16_000, format=form, subtype="PCM_16")
    return file.getvalue()


def shard(path: Path, members: dict[str, bytes], form: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w", format=form) as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def spoken(first: int, n: int) -> dict[str, bytes]:
    members: dict[str, bytes] = {}
    for i in range(first, first + n):
        members |= {f"clip{i}.flac": sound(i), f"clip{i}.txt": f"sentence {i}".encode()}
    return members


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_clips_are_what_tarfile_reads(tmp_path, form):
    long_name = "a/" * 60 + "ü" * 30 + ".wav"  # longer than a header's field
    named = {} if form == tarfile.USTAR_FORMAT else {long_name: sound(9, "WAV"), long_name[:-3] + "txt": b"long"}
    path = shard(tmp_path / "x.tar", {**spoken(0, 3), **named}, form)
    found = read_utterances(path)
    assert [one.text for one in found] == ["sentence 0", "sentence 1", "sentence 2"] + ["long"] * bool(named)
    with tarfile.open(path) as tar:
        for one in found:
            assert isinstance(one.audio, TarMember)
            content = tar.extractfile(one.audio.name).read()
            assert one.audio.read() == content
            np.testing.assert_array_equal(
                read_audio(one.audio), soundfile.read(io.BytesIO(content), dtype="float32")[0]
            )
    assert found[1].id == "clip1" and found[1].where == "x.tar key clip1"


def test_shards_of_parts_by_pattern_folder_and_list(tmp_path):
    for number in range(2):
        shard(tmp_path / f"train-{number:03d}.tar", spoken(10 * number, 2))
    shard(tmp_path / "dev-000.tar", spoken(50, 1))
    train = read_utterances(f"{tmp_path}/train-{{000..001}}.tar")
    assert [one.id for one in train] == ["clip0", "clip1", "clip10", "clip11"] and {one.part for one in train} == {None}
    everything = read_utterances(tmp_path)
    assert [(one.part, one.id) for one in everything] == [
        ("dev", "clip50"),
        *(("train", one.id) for one in train),
    ]
    assert sorted(read_utterances(f"{tmp_path}/{{train-{{000..001}},dev-000}}.tar"), key=str) == sorted(
        everything, key=str
    )
    both = read_utterances(f"train={tmp_path}/train-000.tar,test={tmp_path}/train-001.tar")
    assert [one.part for one in both] == ["train", "train", "test", "test"]
    with pytest.raises(DataError, match=r"train-002.tar: no such file\n.*train-003.tar: no such file"):
        read_utterances(f"{tmp_path}/train-{{000..003}}.tar")


def test_columns_of_json(tmp_path):
    about = {"sentence": "ciao", "speaker": "anna", "lang": "it", "start": 0.01, "end": 0.03, "tags": ["x"]}
    path = shard(tmp_path / "x.tar", {"a.wav": sound(0, "WAV"), "a.json": json.dumps(about).encode()})
    (one,) = read_utterances(path)
    assert (one.text, one.speaker, one.language) == ("ciao", "anna", "it")
    assert isinstance(one.audio, Segment) and one.audio.file == path and len(read_audio(one.audio)) == 320


def test_the_index_is_kept_until_the_shard_changes(tmp_path, monkeypatch, cache):
    path = shard(tmp_path / "x.tar", spoken(0, 2))
    scanned = []
    scan = tars_module._scan
    monkeypatch.setattr(tars_module, "_scan", lambda path: scanned.append(path) or scan(path))
    first = read_utterances(path)
    assert read_utterances(path) == first and len(scanned) == 1 and (tmp_path / "x.tar.index.json").is_file()
    before = path.stat()
    shard(path, spoken(5, 2))  # as long as before
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert path.stat().st_size == before.st_size
    assert [one.id for one in read_utterances(path)] == ["clip5", "clip6"] and len(scanned) == 2
    (tmp_path / "x.tar.index.json").write_text("{torn")
    assert [one.id for one in read_utterances(path)] == ["clip5", "clip6"] and len(scanned) == 3
    assert not cache.exists()


def test_an_index_goes_to_the_cache_where_the_folder_is_read_only(tmp_path, monkeypatch, cache):
    path = shard(tmp_path / "x.tar", spoken(0, 1))

    def refuse(place: Path, text: str) -> None:
        if place.parent == tmp_path:
            raise PermissionError(place)
        place.parent.mkdir(parents=True)
        place.write_text(text)

    monkeypatch.setattr(tars_module, "write_text", refuse)
    first = read_utterances(path)
    monkeypatch.setattr(tars_module, "_scan", lambda path: pytest.fail("scanned again"))
    assert read_utterances(path) == first and len(list(cache.rglob("*.json"))) == 1


def test_bad_clips_are_all_told(tmp_path):
    members = {
        "ok.flac": sound(0), "ok.txt": b"fine",
        "mute.flac": sound(0),
        "two.flac": sound(0), "two.wav": sound(0, "WAV"), "two.txt": b"two",
        "lone.txt": b"no sound",
        "latin.flac": sound(0), "latin.txt": "café".encode("latin-1"),
        "list.flac": sound(0), "list.json": b"[1]",
        "torn.flac": sound(0), "torn.json": b"{",
        "README": b"no suffix",
    }  # fmt: skip
    utterances, problems = read_all(shard(tmp_path / "x.tar", members))
    assert [one.id for one in utterances] == ["ok"]
    for key, fault in {
        "mute": "no transcript; put what is said into a .txt",
        "two": "one audio file beside its text, found flac, wav",
        "lone": "one audio file beside its text, found txt",
        "latin": "not UTF-8 text or not JSON",
        "list": r".json must hold an object, got [1]",
        "torn": "not UTF-8 text or not JSON",
    }.items():
        assert any(str(one).startswith(f"x.tar key {key}: ") and fault in str(one) for one in problems), key
    assert len(problems) == 6


def test_a_shard_that_breaks_off(tmp_path):
    path = shard(tmp_path / "x.tar", spoken(0, 3))
    with tarfile.open(path) as tar:
        last = tar.getmembers()[-2]
    path.write_bytes(path.read_bytes()[: last.offset_data + 10])
    utterances, problems = read_all(path)
    assert [one.id for one in utterances][:2] == ["clip0", "clip1"]
    assert any("breaks off or is no tar" in str(one) and "fetch it again" in str(one) for one in problems)


@pytest.mark.parametrize("name", ["x.tar.gz", "x.tgz", "x.tar"])
def test_compressed_shards_are_refused(tmp_path, name):
    plain = shard(tmp_path / "plain", spoken(0, 1))
    (tmp_path / name).write_bytes(gzip.compress(plain.read_bytes()))
    with pytest.raises(DataError, match=rf"{name}: is compressed.*unpack it to a plain .tar"):
        read_utterances(tmp_path / name)
    (tmp_path / "y.tar").write_bytes(b"no tar at all" * 100)
    with pytest.raises(DataError, match=r"y.tar: breaks off or is no tar"):
        read_utterances(tmp_path / "y.tar")


@pytest.mark.parametrize(
    "pattern, names",
    [
        ("a.tar", ["a.tar"]),
        ("{0..2}", ["0", "1", "2"]),
        ("x{09..11}y", ["x09y", "x10y", "x11y"]),
        ("{a,b}{1..2}", ["a1", "a2", "b1", "b2"]),
        ("{a{1..2},b}", ["a1", "b", "a2"]),
    ],
)
def test_braces(pattern, names):
    assert expand_braces(pattern) == names
    with pytest.raises(DataError, match="runs backwards"):
        expand_braces("x{3..1}.tar")


def test_members_travel_to_worker_processes(tmp_path):
    found = read_utterances(shard(tmp_path / "x.tar", spoken(0, 50)))
    assert pickle.loads(pickle.dumps(found)) == found and len(pickle.dumps(found)) < 50 * 200


@pytest.mark.slow
def test_the_same_clips_as_webdataset(tmp_path):
    webdataset = pytest.importorskip("webdataset", reason="reads tar shards independently: pip install webdataset")
    odd = {"dir/a.b.wav": sound(70, "WAV"), "dir/a.txt": b"dotted", "UP.FLAC": sound(71), "UP.TXT": b"capitals"}
    path = shard(tmp_path / "x.tar", {**spoken(0, 20), **odd})
    theirs = {}
    for sample in webdataset.WebDataset(str(path), shardshuffle=False):
        (suffix,) = (key for key in sample if key.rpartition(".")[2] in ("flac", "wav"))
        theirs[sample["__key__"]] = (sample[suffix], sample["txt"].decode())
    assert {one.id: (one.audio.read(), one.text) for one in read_utterances(path)} == theirs and len(theirs) == 22
