"""Files are found once each, every faulty one is named, and texts are laid out so that other programs read them."""

from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from audiolora.speech.texts.transcription import Segment, Transcription, Word
from audiolora.speech.texts.transcripts import Transcript, check_audio_files, find_audio, render, write_captions


def write(path: Path, duration_s: float = 0.5, rate_hz: int = 8000) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.sin(np.arange(round(duration_s * rate_hz)) / 9).astype(np.float32) / 3, rate_hz, "PCM_16")
    return path


def test_folders_are_searched_and_each_file_is_taken_once(tmp_path: Path) -> None:
    for name in ("b.wav", "deep/er/a.FLAC", "deep/.cache/c.wav", "deep/._b.wav"):
        write(tmp_path / name) if "FLAC" not in name else soundfile.write(
            _made(tmp_path / name), np.zeros(800), 8000, format="FLAC"
        )
    (tmp_path / "notes.txt").write_text("no audio")
    (tmp_path / "odd.wav").mkdir()
    b, a = tmp_path / "b.wav", tmp_path / "deep" / "er" / "a.FLAC"
    assert find_audio([tmp_path]) == [b, a]
    assert find_audio([a, tmp_path, b]) == [a, b]
    assert find_audio([tmp_path / "notes.txt"]) == [tmp_path / "notes.txt"], "a file that is named is taken at its word"
    with pytest.raises(ValueError, match=r"odd.wav: holds no audio \(.*\.flac"):
        find_audio([tmp_path / "odd.wav"])
    with pytest.raises(ValueError, match="at least one audio file"):
        find_audio([])


def _made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def test_every_faulty_file_is_named_with_its_fault(tmp_path: Path) -> None:
    good = write(tmp_path / "good.wav", 1.25)
    (tmp_path / "empty.wav").touch()
    (tmp_path / "corrupt.wav").write_bytes(b"RIFF and then nothing of the kind")
    nan = np.zeros(800, np.float32)
    nan[400] = np.nan
    soundfile.write(tmp_path / "nan.wav", nan, 8000, "FLOAT")
    long = write(tmp_path / "long.wav", 65.5, 1000)
    names = ["missing.wav", "empty.wav", "corrupt.wav", "nan.wav"]
    files = [tmp_path / name for name in [*names, "good.wav", "long.wav"]]
    heard, faults = check_audio_files(files)
    assert [(path, one.source, one.duration_s) for path, one in heard] == [(good, good, 1.25), (long, long, 65.5)]
    words = ["no such file", "zero length", "corrupt", "NaN"]
    assert len(faults) == len(names)
    for name, word, fault in zip(names, words, faults, strict=True):
        assert name in fault and word in fault, fault


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_named(tmp_path: Path) -> None:
    write(tmp_path / "mine.wav").chmod(0)
    assert "mine.wav" in check_audio_files([tmp_path / "mine.wav"])[1][0]


SPOKEN = Segment(0.25, 1.5, "Hello,\n world.", "en", (Word("Hello,", 0.25, 0.8, 0.9), Word("world.", 0.8, 1.5, 1.0)))
TRANSCRIPTS = [
    Transcript(Path("a b.wav"), Transcription(1.5, (SPOKEN,))),
    Transcript(Path("ü.wav"), Transcription(0.25, ())),
]


def test_layouts_are_read_back_by_their_own_readers() -> None:
    table = list(csv.DictReader(io.StringIO(render(TRANSCRIPTS, "tsv", alone=False)), delimiter="\t"))
    assert table == [{"audio": "a b.wav", "text": "Hello, world."}, {"audio": "ü.wav", "text": ""}]
    timed = list(csv.DictReader(io.StringIO(render(TRANSCRIPTS, "tsv", alone=False, timed=True)), delimiter="\t"))
    assert timed == [{"audio": "a b.wav", "start_s": "0.25", "end_s": "1.50", "text": "Hello, world."}]
    hello = {"start_s": 0.25, "end_s": 0.8, "text": "Hello,", "probability": 0.9}
    world = {"start_s": 0.8, "end_s": 1.5, "text": "world.", "probability": 1.0}
    segment = {"start_s": 0.25, "end_s": 1.5, "text": "Hello, world.", "language": "en", "words": [hello, world]}
    assert json.loads(render(TRANSCRIPTS, "json", alone=False)) == [
        {"audio": "a b.wav", "duration_s": 1.5, "text": "Hello, world.", "segments": [segment]},
        {"audio": "ü.wav", "duration_s": 0.25, "text": "", "segments": []},
    ]
    assert render(TRANSCRIPTS, "text", alone=False) == "a b.wav\tHello, world.\nü.wav\t\n"


def test_captions_of_several_files_are_a_file_each(tmp_path: Path) -> None:
    written = write_captions(TRANSCRIPTS, "srt", tmp_path / "new")
    assert [path.name for path in written] == ["a b.srt", "ü.srt"]
    assert written[0].read_text() == "1\n00:00:00,250 --> 00:00:01,500\nHello, world.\n\n"
    with pytest.raises(ValueError, match=r"the captions of a b\.wav and of b/a b\.flac would both be .*a b\.vtt"):
        write_captions([TRANSCRIPTS[0], Transcript(Path("b/a b.flac"), Transcription(1.0, ()))], "vtt", tmp_path)


def test_a_file_alone_needs_no_path_but_in_a_table() -> None:
    assert render(TRANSCRIPTS[:1], "text", alone=True) == "Hello, world.\n"
    assert render(TRANSCRIPTS[:1], "tsv", alone=True) == "audio\ttext\na b.wav\tHello, world.\n"
    assert render([], "text", alone=False) == ""


def test_a_name_that_is_no_text_still_makes_one_line() -> None:
    line = render(
        [Transcript(Path(os.fsdecode(b"caf\xe9\t\n.wav")), Transcription(1.0, (Segment(0.0, 1.0, "x"),)))],
        "text",
        alone=False,
    )
    assert line == "caf\N{REPLACEMENT CHARACTER}\\t\\n.wav\tx\n"
    line.encode("utf-8")
