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

from audiolora.speech.transcripts import Transcript, check_audio_files, find_audio, read_by_the_hour, render


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
    write(tmp_path / "long.wav", 30.5, 1000)
    write(tmp_path / "limit.wav", 30.0, 1000)
    names = ["missing.wav", "empty.wav", "corrupt.wav", "nan.wav", "long.wav"]
    files = [tmp_path / name for name in [*names, "good.wav", "limit.wav"]]
    heard, faults = check_audio_files(files)
    assert heard == [(good, 1.25), (tmp_path / "limit.wav", 30.0)]
    words = ["no such file", "zero length", "corrupt", "NaN", "30.5 s"]
    assert len(faults) == len(names)
    for name, word, fault in zip(names, words, faults, strict=True):
        assert name in fault and word in fault, fault


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_named(tmp_path: Path) -> None:
    write(tmp_path / "mine.wav").chmod(0)
    assert "mine.wav" in check_audio_files([tmp_path / "mine.wav"])[1][0]


def test_memory_holds_a_portion_at_a_time(tmp_path: Path) -> None:
    files = [(write(tmp_path / f"{n}.wav", n), float(n)) for n in (1, 2, 1, 4, 1)]
    portions = list(read_by_the_hour(files, held_s=3.0))
    assert [[path for path, _ in portion] for portion, _ in portions] == [
        [path for path, _ in files[start:end]] for start, end in ((0, 2), (2, 3), (3, 4), (4, 5))
    ]
    assert [[len(audio) for audio in audios] for _, audios in portions] == [[16000, 32000], [16000], [64000], [16000]]
    assert list(read_by_the_hour([])) == []


TRANSCRIPTS = [Transcript(Path("a b.wav"), 1.5, "Hello,\n world."), Transcript(Path("ü.wav"), 0.25, "")]


def test_layouts_are_read_back_by_their_own_readers() -> None:
    table = list(csv.DictReader(io.StringIO(render(TRANSCRIPTS, "tsv", alone=False)), delimiter="\t"))
    assert table == [{"audio": "a b.wav", "text": "Hello, world."}, {"audio": "ü.wav", "text": ""}]
    assert json.loads(render(TRANSCRIPTS, "json", alone=False)) == [
        {"audio": "a b.wav", "duration_s": 1.5, "text": "Hello, world."},
        {"audio": "ü.wav", "duration_s": 0.25, "text": ""},
    ]
    assert render(TRANSCRIPTS, "text", alone=False) == "a b.wav\tHello, world.\nü.wav\t\n"


def test_a_file_alone_needs_no_path_but_in_a_table() -> None:
    assert render(TRANSCRIPTS[:1], "text", alone=True) == "Hello, world.\n"
    assert render(TRANSCRIPTS[:1], "tsv", alone=True) == "audio\ttext\na b.wav\tHello, world.\n"
    assert render([], "text", alone=False) == ""


def test_a_name_that_is_no_text_still_makes_one_line() -> None:
    line = render([Transcript(Path(os.fsdecode(b"caf\xe9\t\n.wav")), 1.0, "x")], "text", alone=False)
    assert line == "caf\N{REPLACEMENT CHARACTER}\\t\\n.wav\tx\n"
    line.encode("utf-8")
