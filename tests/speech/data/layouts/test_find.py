"""Which layout some data have, and what is said of data that have none or several."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile

from audiolora.speech.data.layouts import find
from audiolora.speech.data.layouts.find import row_sets
from audiolora.speech.data.layouts.parts import part_of, part_of_split
from audiolora.speech.data.manifests import DataError, read_utterances
from audiolora.speech.data.rows import RowSet


@pytest.fixture
def folder(tmp_path) -> Path:
    """Manifests `train.jsonl`, `dev.csv` and `test.tsv` beside their clips."""
    for name in ("a", "b", "c", "d"):
        (tmp_path / "wav").mkdir(exist_ok=True)
        soundfile.write(tmp_path / f"wav/{name}.wav", np.full(160, 0.1), 16_000)
    rows = [{"audio": f"wav/{name}.wav", "text": f"say {name}"} for name in ("a", "b")]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "dev.csv").write_text("audio,text\nwav/c.wav,say c\n")
    (tmp_path / "test.tsv").write_text("audio\ttext\nwav/d.wav\tsay d\n")
    return tmp_path


def parts(data: str | Path) -> list[tuple[str | None, str]]:
    return [(one.part, one.text) for one in read_utterances(data)]


TRAIN = [("train", "say a"), ("train", "say b")]


def test_manifests_of_parts(folder):
    everything = [*TRAIN, ("dev", "say c"), ("test", "say d")]
    assert parts(f"{folder}/train.jsonl,{folder}/dev.csv,{folder}/test.tsv") == everything
    assert sorted(parts(folder)) == sorted(everything) == sorted(parts(f"manifests:{folder}"))
    assert parts(f"test={folder}/train.jsonl,train={folder}/dev.csv") == [
        ("test", "say a"),
        ("test", "say b"),
        ("train", "say c"),
    ]
    for one in (f"{folder}/train.jsonl", f"train={folder}/train.jsonl"):
        assert parts(one) == [(None, "say a"), (None, "say b")]  # one part is no split


def test_manifests_of_parts_beside_a_folder_clips(folder):
    """It is not Common Voice for that."""
    (folder / "clips").mkdir()
    assert sorted(parts(folder)) == sorted([*TRAIN, ("dev", "say c"), ("test", "say d")])


def test_sets_without_parts_are_joined(folder):
    (folder / "train.jsonl").rename(folder / "monday.jsonl")
    (folder / "dev.csv").rename(folder / "tuesday.csv")
    joined = [(None, "say a"), (None, "say b"), (None, "say c")]
    assert parts(f"{folder}/monday.jsonl,{folder}/tuesday.csv") == joined
    with pytest.raises(DataError, match="a comma with nothing behind it"):
        read_utterances(f"{folder}/monday.jsonl,")
    with pytest.raises(DataError, match=r"row 1: id 'wav/a.wav' was already used in monday.jsonl row 1"):
        read_utterances(f"{folder}/monday.jsonl,{folder}/monday.jsonl")


def test_folders_of_parts_and_their_metadata(folder):
    for part, name in (("train", "a"), ("test", "d")):
        (folder / "x" / part).mkdir(parents=True)
        (folder / f"wav/{name}.wav").rename(folder / f"x/{part}/{name}.wav")
        (folder / f"x/{part}/{name}.txt").write_text(f"say {name}")
    beside = read_utterances(folder / "x")
    assert [(one.part, one.id) for one in beside] == [("test", "test/d.wav"), ("train", "train/a.wav")]
    for part, name in (("train", "a"), ("test", "d")):
        (folder / f"x/{part}/metadata.csv").write_text(f"file_name,transcription\n{name}.wav,told {name}\n")
    assert parts(folder / "x") == [("test", "told d"), ("train", "told a")]
    assert parts(f"folder:{folder}/x") == [("test", "say d"), ("train", "say a")]


def test_a_folder_that_may_be_several_things(folder):
    (folder / "wav.scp").write_text("u wav/a.wav\n")
    (folder / "text").write_text("u said by kaldi\n")
    with pytest.raises(DataError, match=r"may be a Kaldi data .* or train.jsonl.*; say which: kaldi:/.*, manifests:/"):
        read_utterances(folder)
    assert parts(f"kaldi:{folder}") == [(None, "said by kaldi")]
    assert len(parts(f"manifests:{folder}")) == 4


@pytest.mark.parametrize(
    "data, fault",
    [
        ("{}/empty", r"holds no audio and nothing else that this reads; looked for datasets: .*kaldi: .*tar: .*"),
        ("{}/gone", r"no such file or folder, and no built-in set .*prompts-en.*hf:NAME.*librispeech: "),
        ("{}/gone.jsonl,{}/dev.csv", "gone.jsonl: no such file or folder"),
        ("kaldi:{}/gone", "kaldi:.*gone: no such file or folder"),
        ("kaldi:{}/dev.csv", "dev.csv: is a file, and kaldi: reads folders"),
        ("kaldi:{}", "no wav.scp; a Kaldi data directory has"),
        ("metadata:{}", "no metadata.jsonl"),
        ("parquet:{}", "no .parquet files in it"),
        ("tar:{}", "holds nothing of that layout; looked for .*tar: "),
        ("commonvoice:{}", "no list train.tsv"),
        ("librispeech:{}", r"no \*.trans.txt"),
        ("datasets:{}", "cannot be read as a saved data set"),
        ("{}:train", "has no splits by name; leave ':train' away"),
        ("{}/train.jsonl,prompts-en", "prompts-en is a built-in set and stands alone"),
        ("train=prompts-en,test=prompts-it", "prompts-en is a built-in set and stands alone"),
        ("{}/gone:train", "neither is .*gone a folder of which train is a split"),
    ],
)
def test_data_that_cannot_be_read(folder, data, fault):
    (folder / "empty").mkdir()
    with pytest.raises(DataError, match=fault):
        read_utterances(data.replace("{}", str(folder)))


def shard(path: Path, clip: Path, key: str) -> None:
    with tarfile.open(path, "w") as tar:
        tar.add(clip, f"{key}.wav")
        (clip.parent / "said.txt").write_text(f"say {key}")
        tar.add(clip.parent / "said.txt", f"{key}.txt")


@pytest.mark.parametrize("prefix", ["", "tar:"])
def test_shards_with_braces_are_joined_in_any_order(folder, monkeypatch, prefix):
    for name, key in (("x-0", "a"), ("x-1", "b"), ("test-0", "c")):
        shard(folder / f"{name}.tar", folder / "wav/a.wav", key)
    monkeypatch.chdir(folder)  # names alone, no folder before them
    some = [(None, "say a"), (None, "say b")]
    for braces in ("{0..1}", "{0,1}", "{0,{1,1}}"):
        assert parts(f"{prefix}x-{braces}.tar,{prefix}test-0.tar") == [*some, ("test", "say c")]
        assert parts(f"{prefix}test-0.tar,{folder}/x-{braces}.tar") == [("test", "say c"), *some]
        assert parts(f"train={prefix}x-{braces}.tar,test=test-0.tar") == [
            ("train", "say a"), ("train", "say b"), ("test", "say c"),
        ]  # fmt: skip


def test_sets_with_prefixes_are_joined(folder):
    for name in ("monday", "tues,day"):
        (folder / name).mkdir()
        (folder / name / "wav.scp").write_text(f"{name} {folder}/wav/a.wav\n")
        (folder / name / "text").write_text(f"{name} said on {name}\n")
    assert parts(f"kaldi:{folder}/monday,manifests:{folder}")[0] == (None, "said on monday")
    assert parts(f"kaldi:{folder}/tues,day") == [(None, "said on tues,day")]


def test_sets_of_the_hub_are_joined_by_the_parts_that_they_name(folder, monkeypatch):
    asked = []
    monkeypatch.setattr(find.hub, "hub", lambda written: asked.append(written) or [RowSet("x", [], folder)])
    sets = row_sets("hf:a/b:it::train?rows=5,hf:a/b::validation[:10%],hf:a/b:it:test")
    assert asked == ["a/b:it::train?rows=5", "a/b::validation[:10%]", "a/b:it:test"]
    assert [rows.part for rows in sets] == ["train", "dev", "test"]


def test_long_lists_and_tildes_that_name_nobody_are_told_as_missing(folder):
    for data in (",".join(f"manifest-{i:03d}.jsonl" for i in range(20)), "x" * 300, "~nobody/x.csv", "kaldi:~nobody"):
        with pytest.raises(DataError, match="no such file or folder"):
            read_utterances(data)


def test_a_file_named_with_a_comma_or_a_colon_is_itself(folder):
    for name in ("a,b.csv", "kaldi:x.csv", "x{1..2}.csv"):
        (folder / "dev.csv").rename(folder / name)
        assert parts(folder / name) == [(None, "say c")]
        (folder / name).rename(folder / "dev.csv")


@pytest.mark.parametrize(
    "name, part",
    [
        ("train", "train"), ("training", "train"), ("dev", "dev"), ("valid", "dev"), ("validation", "dev"),
        ("test", "test"), ("eval", "test"), ("Train", "train"),
        ("train_station", None), ("tests", None), ("extra", None), ("", None),
    ],
)  # fmt: skip
def test_names_of_parts(name, part):
    assert part_of(name) == part
    if name and "_" not in name:
        assert part_of_split(f"{name}-00000-of-00004") == part_of_split(f"{name}.clean") == part_of_split(name) == part
