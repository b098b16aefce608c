"""Arrow and Parquet, written by `datasets` and by pyarrow."""

from __future__ import annotations

import io
import os
import pickle
import warnings
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
import soundfile

from audiolora.speech.data.audio import AudioError, read_audio
from audiolora.speech.data.layouts import tables
from audiolora.speech.data.layouts.tables import ArrowCell, ParquetCell
from audiolora.speech.data.manifests import DataError, read_all, read_utterances
from audiolora.speech.data.sources import file_of


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("AUDIOLORA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def sound(seed: int) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.random.default_rng(seed).uniform(-0.5, 0.5, 800), 16_000, format="FLAC")
    return file.getvalue()


SOUNDS = [sound(i) for i in range(10)]


def spoken(**columns: list) -> datasets.Dataset:
    """Ten clips that lie in the table."""
    clips = [{"bytes": content, "path": f"clip{i}.flac"} for i, content in enumerate(SOUNDS)]
    table = {"audio": clips, "sentence": [f"sentence {i}" for i in range(10)], **columns}
    return datasets.Dataset.from_dict(table).cast_column("audio", datasets.Audio(decode=True))


def contents(data: str | Path) -> list[bytes]:
    return [one.audio.read() for one in read_utterances(data)]


def test_every_form_holds_the_same_clips(tmp_path):
    dataset = spoken(speaker_id=list(range(10)), locale=["it"] * 10)
    dataset.save_to_disk(str(tmp_path / "saved"), num_shards=3)
    dataset.to_parquet(str(tmp_path / "x.parquet"), batch_size=4)
    table = pq.read_table(tmp_path / "x.parquet")
    pa.feather.write_feather(table, str(tmp_path / "file.arrow"), compression="uncompressed")
    pq.write_table(table, tmp_path / "grouped.parquet", row_group_size=3)
    stream = tmp_path / "saved" / "data-00000-of-00003.arrow"
    for name in ("saved", "x.parquet", "file.arrow", "grouped.parquet"):
        found = read_utterances(tmp_path / name)
        assert [(one.id, one.text, one.speaker, one.language) for one in found] == [
            (f"clip{i}.flac", f"sentence {i}", str(i), "it") for i in range(10)
        ]
        assert [one.audio.read() for one in found] == SOUNDS and found[4].where == f"{name} row 4"
        np.testing.assert_array_equal(
            read_audio(found[3].audio), soundfile.read(io.BytesIO(SOUNDS[3]), dtype="float32")[0]
        )
        assert all(file_of(one.audio).is_file() for one in found)
    assert contents(stream) == SOUNDS[:4]


def test_parts_of_parquet_folders(tmp_path):
    for place in ("data", "."):
        folder = tmp_path / f"set{len(place)}"
        (folder / place).mkdir(parents=True)
        spoken().select(range(6)).to_parquet(str(folder / place / "train-00000-of-00002.parquet"))
        spoken().select(range(6, 8)).to_parquet(str(folder / place / "train-00001-of-00002.parquet"))
        spoken().select(range(8, 10)).to_parquet(str(folder / place / "test-00000-of-00001.parquet"))
        found = read_utterances(folder)
        assert [one.part for one in found] == ["test"] * 2 + ["train"] * 8
        assert [one.audio.read() for one in found] == SOUNDS[8:] + SOUNDS[:8]
        train = read_utterances(f"{folder}:train")
        assert [one.id for one in train] == [f"clip{i}.flac" for i in range(8)] and train[0].part is None
        with pytest.raises(DataError, match=r"has no split 'dev'; choose one of .*:test, .*:train"):
            read_utterances(f"{folder}:dev")


def test_rows_chosen_and_shuffled(tmp_path):
    spoken().shuffle(seed=1).select(range(4)).save_to_disk(str(tmp_path / "few"))
    few = datasets.load_from_disk(str(tmp_path / "few")).cast_column("audio", datasets.Audio(decode=False))
    assert contents(tmp_path / "few") == [row["audio"]["bytes"] for row in few]


@pytest.mark.parametrize("ids", ["own", "repeated", "none"])
def test_ids_tell_all_rows_apart(tmp_path, ids):
    clips = [{"bytes": content, "path": "audio.wav"} for content in SOUNDS[:3]]
    columns = {"own": {"id": [7, 8, 9]}, "repeated": {"id": [1, 1, 2]}, "none": {}}[ids]
    datasets.Dataset.from_dict({"audio": clips, "text": ["a", "b", "c"], **columns}).save_to_disk(str(tmp_path / "x"))
    expected = ["7", "8", "9"] if ids == "own" else ["row-0", "row-1", "row-2"]
    assert [one.id for one in read_utterances(tmp_path / "x")] == expected


def test_some_clips_are_files_and_some_lie_in_the_table(tmp_path):
    (tmp_path / "b.flac").write_bytes(SOUNDS[1])
    clips = [{"bytes": SOUNDS[0], "path": None}, {"bytes": None, "path": "b.flac"}, {"bytes": None, "path": None}]
    table = pa.Table.from_pylist([{"audio": clip, "text": "hello"} for clip in clips])
    pq.write_table(table, tmp_path / "x.parquet")
    utterances, problems = read_all(tmp_path / "x.parquet")
    assert utterances[0].audio == ParquetCell(tmp_path / "x.parquet", 0, 0, "audio.bytes")
    assert utterances[1].audio == tmp_path / "b.flac" and len(utterances) == 2
    assert len(problems) == 1 and str(problems[0]).startswith("x.parquet row 2: column 'audio' must hold")


def test_plain_binary_columns_and_decoded_ones(tmp_path):
    pq.write_table(pa.table({"audio": SOUNDS, "text": ["a"] * 10}), tmp_path / "x.parquet", row_group_size=4)
    assert contents(tmp_path / "x.parquet") == SOUNDS
    decoded = pa.table({"audio": [{"array": [0.1, 0.2], "sampling_rate": 16_000}], "text": ["a"]})
    pq.write_table(decoded, tmp_path / "y.parquet")
    with pytest.raises(DataError, match=r"y.parquet: no column 'audio'; found 'text'"):
        read_utterances(tmp_path / "y.parquet")


def test_large_row_groups_are_told_once_a_file(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(tables, "_LARGE", 2000)
    pq.write_table(pa.table({"audio": SOUNDS, "text": ["a"] * 10}), tmp_path / "x.parquet", row_group_size=4)
    assert contents(tmp_path / "x.parquet") == SOUNDS
    assert len(caplog.messages) == 1 and f"or let datasets unpack the folder once: hf:{tmp_path}" in caplog.messages[0]


@pytest.mark.parametrize("name", ["x.parquet", "x.arrow"])
def test_worker_processes_read_the_same(tmp_path, name):
    from torch.utils.data import DataLoader

    spoken().to_parquet(str(tmp_path / "x.parquet"), batch_size=3)
    with pa.OSFile(str(tmp_path / "x.arrow"), "wb") as file, pa.ipc.new_stream(file, spoken().data.schema) as stream:
        stream.write_table(pq.read_table(tmp_path / "x.parquet"))
    clips = [one.audio for one in read_utterances(tmp_path / name)]
    assert clips[0].read() == SOUNDS[0]  # so that the file is open here before the workers are
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch counts processors
        loader = DataLoader([[clip] for clip in clips], num_workers=2, batch_size=None, collate_fn=read_first)
    assert list(loader) == SOUNDS


def read_first(clips: list) -> bytes:
    return clips[0].read()


def test_files_that_are_none(tmp_path):
    for name, kind in (("x.parquet", "a Parquet"), ("x.arrow", "an Arrow")):
        (tmp_path / name).write_bytes(b"nothing of the kind")
        with pytest.raises(DataError, match=f"{name}: not {kind} file"):
            read_utterances(tmp_path / name)


def test_cells_are_small_and_tell_when_their_file_changed(tmp_path):
    spoken().save_to_disk(str(tmp_path / "x"))
    found = read_utterances(tmp_path / "x")
    assert pickle.loads(pickle.dumps(found)) == found and len(pickle.dumps(found[0].audio)) < 400
    cell = found[9].audio
    assert isinstance(cell, ArrowCell) and cell.read() == SOUNDS[9]
    spoken().select(range(3)).save_to_disk(str(tmp_path / "y"))
    os.replace(tmp_path / "y/data-00000-of-00001.arrow", cell.table)
    with pytest.raises(AudioError, match=r"row 9: cannot be read"):
        read_audio(cell)
    cell.table.unlink()
    with pytest.raises(AudioError, match=r"row 9: cannot be read"):
        read_audio(cell)
