"""Kaldi data directories, written by hand after https://kaldi-asr.org/doc/data_prep.html."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from audiolora.speech.data.audio import read_audio
from audiolora.speech.data.manifests import DataError, read_all, read_utterances
from audiolora.speech.data.sources import Segment


@pytest.fixture
def folder(tmp_path) -> Path:
    """`data/train`: two calls of 3 s in `data/wav`, cut into three utterances of two speakers."""
    folder = tmp_path / "data" / "train"
    write(folder, "text", "anna-1 good morning\nanna-2 and good night\nben-1 hello\n")
    write(folder, "segments", "anna-1 call1 0.00 1.25\nanna-2 call1 1.50 -1\nben-1 call2 0.5 2.0\n")
    write(folder, "utt2spk", "anna-1 anna\nanna-2 anna\nben-1 ben\n")
    for number in (1, 2):
        wav = tmp_path / f"data/wav/call{number}.wav"
        wav.parent.mkdir(exist_ok=True)
        soundfile.write(wav, np.random.default_rng(number).uniform(-0.5, 0.5, 48_000), 16_000, "PCM_16")
    write(folder, "wav.scp", f"call1 {tmp_path}/data/wav/call1.wav\ncall2 cat {tmp_path}/data/wav/call2.wav |\n")
    return folder


def write(folder: Path, name: str, text: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text, encoding="utf-8")


def test_segments_speakers_and_texts(folder):
    wav = folder.parent / "wav"
    found = read_utterances(folder)
    assert [(one.id, one.text, one.speaker, one.audio, one.where) for one in found] == [
        ("anna-1", "good morning", "anna", Segment(wav / "call1.wav", 0.0, 1.25), "train/text row 1"),
        ("anna-2", "and good night", "anna", Segment(wav / "call1.wav", 1.5), "train/text row 2"),
        ("ben-1", "hello", "ben", Segment(wav / "call2.wav", 0.5, 1.5), "train/text row 3"),
    ]
    assert [len(read_audio(one.audio)) for one in found] == [20_000, 24_000, 24_000]
    assert read_utterances(f"kaldi:{folder}") == found


def test_without_segments_each_file_is_an_utterance(folder):
    (folder / "segments").unlink()
    (folder / "utt2spk").unlink()
    write(folder, "text", "call1 one\ncall2 two\n")
    write(folder, "utt2lang", "call1 it\ncall2 it\n")
    found = read_utterances(folder)
    assert [(one.id, one.text, one.language, one.speaker) for one in found] == [
        ("call1", "one", "it", None),
        ("call2", "two", "it", None),
    ]
    assert found[0].audio == folder.parent / "wav/call1.wav"


def test_parts_below_a_folder(folder):
    for part in ("test", "dev"):
        other = folder.parent / part
        write(other, "text", "call2 hello\n")
        write(other, "wav.scp", "call2 ../wav/call2.wav\n")
    found = read_utterances(folder.parent)
    assert [(one.id, one.part) for one in found] == [
        ("dev/call2", "dev"),  # both parts call theirs call2
        ("test/call2", "test"),
        ("train/anna-1", "train"),
        ("train/anna-2", "train"),
        ("train/ben-1", "train"),
    ]


@pytest.mark.parametrize(
    "command",
    ["cat {} |", "cat {}|", "flac -c -d -s {} |", "flac -dc {} |", "sox {} -t wav - |", "cat '{}' |"],
)
def test_commands_that_hand_a_file_on(folder, command):
    wav = folder.parent / "wav" / "call1.wav"
    write(folder, "wav.scp", f"call1 {command.format(wav)}\ncall2 {wav}\n")
    assert read_utterances(folder)[0].audio.file == wav


@pytest.mark.parametrize(
    "command",
    [
        "sph2pipe -f wav -p -c 1 call.sph |",
        "sox call.wav -r 16000 -t wav - |",
        "touch {} |",
        "cat a.wav; touch {} |",
        "cat a.wav b.wav |",
        "flac -d -s {} |",
        "flac -c -d -o out {} |",
        "cat 'a.wav |",
        "$(touch {}) |",
    ],
)
def test_no_command_is_run(folder, tmp_path, command):
    write(folder, "wav.scp", f"call1 {command.format(tmp_path / 'made')}\ncall2 /gone.wav\n")
    with pytest.raises(DataError) as caught:
        read_utterances(folder)
    assert caught.value.problems[0].startswith("train/wav.scp row 1: ")
    assert "none is run" in caught.value.problems[0] or "No closing quotation" in caught.value.problems[0]
    assert not (tmp_path / "made").exists()


def test_every_bad_line_is_told(folder):
    write(folder, "text", "anna-1 a\nanna-2\nghost boo\nben-1 hello\nanna-1 again\nben-2 x\nben-3 y\nben-4 z\n")
    wav = folder.parent / "wav/call1.wav"
    write(folder, "wav.scp", f"call1 {wav}\ncall2 /gone.wav\nlone\ncall3 raw.ark:20\n")
    write(
        folder,
        "segments",
        "anna-1 call1 0 1\nanna-2 call1 1 2\nben-1 call2 0 1\nmute call1 0 1\nben-2 nowhere 0 1\n"
        "ben-3 call1 2 1\nben-4 call1 0 1 A\n",
    )
    utterances, problems = read_all(folder)
    assert [one.id for one in utterances] == ["anna-1"]
    for where, fault in [
        ("train/wav.scp row 3", "'lone' stands alone"),
        ("train/wav.scp row 4", "is a place in an archive"),
        ("train/text row 5", "'anna-1' already stands in train/text row 1"),
        ("train/segments row 4", "utterance 'mute' has no line in text"),
        ("train/text row 2", "the text is empty"),
        ("train/text row 3", "utterance 'ghost' has no line in segments"),
        ("train/text row 4", "audio file /gone.wav does not exist"),
        ("train/segments row 5", "recording 'nowhere' has no line in wav.scp"),
        ("train/text row 7", "the segment ends at 1 s, and starts at 2 s"),
        ("train/segments row 7", "must be 'UTTERANCE RECORDING START END'"),
    ]:
        assert any(str(one).startswith(where) and fault in str(one) for one in problems), fault
    assert len(problems) == 10


def test_segments_of_a_recording_that_is_not_read_are_named_and_counted(folder):
    write(folder, "wav.scp", f"call1 sph2pipe a.sph |\ncall2 {folder.parent}/wav/call2.wav\n")
    utterances, problems = read_all(folder)
    assert [one.id for one in utterances] == ["ben-1"]
    assert [one.where for one in problems] == [
        f"train/{row}" for row in ("wav.scp row 1", "segments row 1", "segments row 2")
    ]
    assert problems[2].reason == "recording 'call1' is not read, see train/wav.scp row 1"


def test_a_data_directory_without_texts(folder):
    (folder / "text").unlink()
    with pytest.raises(DataError, match="no text; a Kaldi data directory has wav.scp and text"):
        read_utterances(folder)


def test_paths_relative_to_the_working_directory(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    write(folder, "wav.scp", "call1 wav/call1.wav\ncall2 wav/call2.wav\n")
    assert read_utterances(folder)[0].audio.file == folder.parent / "wav/call1.wav"
