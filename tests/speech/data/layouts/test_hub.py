"""`hf:` names, on folders that `datasets.load_dataset` reads without a network."""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path

import datasets
import numpy as np
import pytest
import soundfile

from audiolora.speech.data.audio import duration_s, read_audio
from audiolora.speech.data.layouts.hub import HubData
from audiolora.speech.data.manifests import DataError, read_utterances


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("AUDIOLORA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    datasets.disable_progress_bars()
    return tmp_path / "cache"


def sound(seed: int) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.random.default_rng(seed).uniform(-0.5, 0.5, 16_000), 16_000, format="FLAC")
    return file.getvalue()


SOUNDS = [sound(i) for i in range(8)]


@pytest.fixture
def folder(tmp_path) -> Path:
    """A set as on the hub: six clips of a second to train on, two to test."""
    folder = tmp_path / "set"
    (folder / "data").mkdir(parents=True)
    for name, chosen in (("train", range(6)), ("test", range(6, 8))):
        clips = [{"bytes": SOUNDS[i], "path": f"{i}.flac"} for i in chosen]
        dataset = datasets.Dataset.from_dict({"audio": clips, "text": [f"sentence {i}" for i in chosen]})
        dataset.cast_column("audio", datasets.Audio(decode=True)).to_parquet(
            str(folder / "data" / f"{name}-00000-of-00001.parquet")
        )
    return folder


def test_all_of_a_set(folder):
    found = read_utterances(f"hf:{folder}")
    assert [one.part for one in found] == ["train"] * 6 + ["test"] * 2
    assert [one.audio.read() for one in found] == SOUNDS
    assert found[7].where == f"hf:{folder}:test row 1"
    assert [one.audio.read() for one in read_utterances(f"hf:{folder}:test")] == SOUNDS[6:]
    assert [one.audio.read() for one in read_utterances(f"hf:{folder}:default:test")] == SOUNDS[6:]
    assert [one.audio.read() for one in read_utterances(f"hf:{folder}::train[2:4]")] == SOUNDS[2:4]


@pytest.mark.parametrize("limit, n", [("rows=3", 3), ("rows=100", 6), ("hours=0.0011", 4), ("hours=1", 6)])
def test_as_much_as_is_asked_for_is_taken_once(folder, cache, limit, n, monkeypatch):
    first = read_utterances(f"hf:{folder}:train?{limit}")
    assert [one.audio.read() for one in first] == SOUNDS[:n] and first[0].text == "sentence 0"
    assert sum(duration_s(one.audio) for one in first) == n and len(read_audio(first[0].audio)) == 16_000
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: pytest.fail("loaded again"))
    assert read_utterances(f"hf:{folder}:train?{limit}") == first
    assert len(list((cache / "streamed").iterdir())) == 1


def test_each_part_is_taken(folder):
    found = read_utterances(f"hf:{folder}?rows=1")
    assert {one.part: one.audio.read() for one in found} == {"train": SOUNDS[0], "test": SOUNDS[6]} and len(found) == 2


def test_streams_of_files(tmp_path):
    """An audiofolder's rows hand out paths; what is kept is their bytes."""
    folder = tmp_path / "clips"
    folder.mkdir()
    for i in range(2):
        (folder / f"{i}.flac").write_bytes(SOUNDS[i])
    (folder / "metadata.csv").write_text("file_name,transcription\n0.flac,zero\n1.flac,one\n")
    if importlib.util.find_spec("torchcodec") is None:
        with pytest.raises(DataError, match=r"torchcodec.*; stream it, which needs none: hf:.*clips\?hours=1000"):
            read_utterances(f"hf:{folder}")
    (one,) = read_utterances(f"hf:{folder}?rows=1")
    (folder / "0.flac").unlink()
    assert one.audio.read() == SOUNDS[0] and one.text == "zero"


def test_a_stream_that_fails_leaves_nothing(folder, cache, monkeypatch):
    import pyarrow.parquet as pq

    monkeypatch.setattr(pq.ParquetWriter, "write_table", lambda *args: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(DataError, match="disk full"):
        read_utterances(f"hf:{folder}?rows=1")
    assert list((cache / "streamed").iterdir()) == []


@pytest.mark.parametrize(
    "written, read",
    [
        ("a/b", HubData("a/b")),
        ("a/b:it", HubData("a/b", ("it",))),
        ("a/b::train[:10%]", HubData("a/b", ("", "train[:10%]"))),
        ("a/b:it:train[5:9]?rows=7", HubData("a/b", ("it", "train[5:9]"), rows=7)),
        ("a/b?hours=0.5", HubData("a/b", hours=0.5)),
    ],
)
def test_names(written, read):
    assert HubData.parse(written) == read


@pytest.mark.parametrize("written", ["", ":it", "a:b:c:d", "a?rows=0", "a?hours=0.0", "a?rows=1.5", "a?streaming"])
def test_names_that_are_none(written):
    with pytest.raises(DataError, match="write hf:NAME"):
        read_utterances(f"hf:{written}" if written else "hf:?rows=1")


def test_sets_that_cannot_be_had(folder):
    with pytest.raises(DataError, match="hf:no/such: datasets cannot load it"):
        read_utterances("hf:no/such")
    with pytest.raises(DataError, match="datasets cannot load it .*nosplit"):
        read_utterances(f"hf:{folder}:nosplit")
