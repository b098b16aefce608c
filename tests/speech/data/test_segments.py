"""Rows that are a segment of their file: NeMo's offset and duration, and start and end."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from audiolora.speech.data.audio import read_audio
from audiolora.speech.data.manifests import DataError, read_all, read_utterances
from audiolora.speech.data.segments import segment_times
from audiolora.speech.data.sources import Segment


@pytest.fixture
def folder(tmp_path) -> Path:
    soundfile.write(tmp_path / "call.wav", np.random.default_rng(0).uniform(-0.5, 0.5, 48_000), 16_000, "FLOAT")
    return tmp_path


def manifest(folder: Path, *rows: dict) -> Path:
    path = folder / "nemo.jsonl"
    path.write_text("".join(json.dumps({"text": "hello", **row}) + "\n" for row in rows))
    return path


def test_nemo_manifests(folder):
    call, path = folder / "call.wav", "call.wav"
    found = read_utterances(
        manifest(
            folder,
            {"audio_filepath": path, "offset": 0.5, "duration": 1.25, "lang": "it"},
            {"audio_filepath": path, "offset": 0, "duration": 0.5},
            {"audio_filepath": path, "offset": 2.0, "duration": None, "speaker": 7},
            {"audio_filepath": str(call), "duration": 3.0, "id": "whole"},
        )
    )
    assert [one.audio for one in found] == [
        Segment(call, 0.5, 1.25),
        Segment(call, 0.0, 0.5),
        Segment(call, 2.0, None),
        Segment(call, 0.0, 3.0, whole=True),
    ]
    assert [one.id for one in found] == ["call.wav:0.5+1.25", "call.wav:0+0.5", "call.wav:2+", "whole"]
    assert (found[0].language, found[2].speaker) == ("it", "7")
    samples, _ = soundfile.read(call, dtype="float32")
    for one, part in zip(found, [samples[8000:28_000], samples[:8000], samples[32_000:], samples], strict=True):
        np.testing.assert_array_equal(read_audio(one.audio), part)


def test_start_and_end(folder):
    (folder / "x.csv").write_text("audio,text,start,end\ncall.wav,a,1.5,\ncall.wav,b,,0.5\ncall.wav,c,1.5,2.6\n")
    assert [one.audio for one in read_utterances(folder / "x.csv")] == [
        Segment(folder / "call.wav", 1.5),
        Segment(folder / "call.wav", 0.0, 0.5),
        Segment(folder / "call.wav", 1.5, 1.1),
    ]
    (folder / "y.csv").write_text("audio,text,start,end,duration\ncall.wav,a,,,3\n")
    assert read_utterances(folder / "y.csv")[0].audio == folder / "call.wav"


@pytest.mark.parametrize(
    "row, fault",
    [
        ({"offset": True}, "offset must be a number of seconds, got True"),
        ({"offset": "1 s"}, "offset must be a number of seconds, got '1 s'"),
        ({"offset": 1, "duration": "long"}, "duration must be a number of seconds, got 'long'"),
        ({"offset": 1, "duration": 0}, "lasts more than 0 s, got 0.0"),
        ({"offset": -1, "duration": 1}, "starts at 0 s or later, got -1.0"),
        ({"offset": float("nan")}, "starts at 0 s or later, got nan"),
        ({"offset": 1, "end": 2}, "has both offset and start or end"),
        ({"start": 2, "end": 1}, "the segment ends at 1 s, and starts at 2 s; mend start and end"),
        ({"duration": [1]}, r"duration must be a number of seconds, got \[1\]"),
        ({"audio_filepath": "gone.wav", "offset": 1}, "audio file .*gone.wav does not exist"),
        ({"audio_filepath": ".", "offset": 1}, "is a folder, not an audio file"),
    ],
)
def test_rows_that_make_no_segment(folder, row, fault):
    path = manifest(folder, {"audio_filepath": "call.wav", "offset": 0}, {"audio_filepath": "call.wav", **row})
    with pytest.raises(DataError, match=f"nemo.jsonl row 2: .*{fault}"):
        read_utterances(path)
    utterances, problems = read_all(path)
    assert len(utterances) == len(problems) == 1


def test_the_same_segment_twice_is_told(folder):
    row = {"audio_filepath": "call.wav", "offset": 1, "duration": 1}
    with pytest.raises(DataError, match=r"row 2: id 'call.wav:1\+1' was already used in nemo.jsonl row 1; give each"):
        read_utterances(manifest(folder, row, row))


def test_bad_rows_are_skipped_when_told_to(folder, caplog):
    path = manifest(folder, {"audio_filepath": "call.wav"}, {"audio_filepath": "gone.wav"}, {"text": 3})
    assert [one.where for one in read_utterances(path, skip_bad=True)] == ["nemo.jsonl row 1"]
    assert len(caplog.messages) == 2 and all(
        message.startswith("skipped nemo.jsonl row") for message in caplog.messages
    )
    with pytest.raises(DataError, match="1 bad rows of 1"):
        read_utterances(manifest(folder, {"audio_filepath": "gone.wav"}), skip_bad=True)


def test_times_survive_decimal_writing():
    for tenths in range(1, 200):
        assert segment_times({"start": 0.1, "end": f"{0.1 + tenths / 10:.1f}"}, "audio") == (0.1, tenths / 10, False)
