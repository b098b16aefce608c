"""Common Voice and LibriSpeech as they unpack."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from audiolora.speech.data.audio import read_audio
from audiolora.speech.data.manifests import DataError, read_all, read_utterances
from audiolora.speech.data.split import split_utterances

HEADER = "client_id\tpath\tsentence_id\tsentence\tup_votes\tdown_votes\tage\tgender\taccents\tvariant\tlocale\tsegment"


def clip(path: Path, value: float = 0.1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    kinds = {".mp3": "MP3", ".flac": "FLAC"}
    soundfile.write(path, np.full(1600, value), 16_000, format=kinds.get(path.suffix, "WAV"))
    return path


def cv_list(folder: Path, name: str, *rows: tuple[str, str, str]) -> None:
    lines = [f"{client}\t{path}\tx\t{said}\t2\t0\t\t\t\t\tit\t" for client, path, said in rows]
    (folder / name).write_text("\n".join([HEADER, *lines]) + "\n", encoding="utf-8")


@pytest.fixture
def italian(tmp_path) -> Path:
    folder = tmp_path / "it"
    for number in range(5):
        clip(folder / f"clips/common_voice_it_{number}.mp3")
    cv_list(folder, "train.tsv", ("a1", "common_voice_it_0.mp3", '"Sì'), ("a1", "common_voice_it_1.mp3", "No"))
    cv_list(folder, "dev.tsv", ("b2", "common_voice_it_2.mp3", "Forse"))
    cv_list(folder, "test.tsv", ("c3", "common_voice_it_3.mp3", "Mai"))
    cv_list(folder, "validated.tsv", *((f"x{i}", f"common_voice_it_{i}.mp3", f"frase {i}") for i in range(5)))
    (folder / "reported.tsv").write_text("sentence_id\tsentence\tlocale\treason\n")
    return folder


def test_common_voice_brings_its_parts(italian):
    found = read_utterances(italian)
    assert [(one.part, one.id, one.text, one.speaker, one.language, one.where) for one in found] == [
        ("train", "common_voice_it_0.mp3", '"Sì', "a1", "it", "train.tsv row 2"),
        ("train", "common_voice_it_1.mp3", "No", "a1", "it", "train.tsv row 3"),
        ("dev", "common_voice_it_2.mp3", "Forse", "b2", "it", "dev.tsv row 2"),
        ("test", "common_voice_it_3.mp3", "Mai", "c3", "it", "test.tsv row 2"),
    ]
    assert found[0].audio == italian / "clips/common_voice_it_0.mp3" and len(read_audio(found[0].audio)) >= 1600
    split = split_utterances(found, seed=0)
    assert [len(part) for part in (split.train, split.dev, split.test)] == [2, 1, 1]


def test_one_list_of_common_voice(italian):
    found = read_utterances(f"{italian}:validated")
    assert [one.text for one in found] == [f"frase {i}" for i in range(5)] and {one.part for one in found} == {None}
    assert read_utterances(italian / "validated.tsv") == read_utterances(f"commonvoice:{italian}:validated") == found
    with pytest.raises(DataError, match=r"no list other.tsv; choose one of .*it:dev, .*it:validated"):
        read_utterances(f"{italian}:other")


def test_bad_rows_of_every_list_are_told(italian):
    cv_list(italian, "dev.tsv", ("b2", "gone.mp3", "Forse"), ("b2", "common_voice_it_2.mp3", " "))
    (italian / "clips/common_voice_it_3.mp3").unlink()
    with pytest.raises(DataError) as caught:
        read_utterances(italian)
    assert [one.partition(":")[0] for one in caught.value.problems] == [
        "dev.tsv row 2",
        "dev.tsv row 3",
        "test.tsv row 2",
    ]


@pytest.fixture
def libri(tmp_path) -> Path:
    folder = tmp_path / "LibriSpeech"
    for part, chapter in (("train-clean-100", "84/121123"), ("train-other-500", "7/8"), ("dev-clean", "1272/128104")):
        place = folder / part / chapter
        prefix = chapter.replace("/", "-")
        for number in range(2):
            clip(place / f"{prefix}-{number:04d}.flac")
        (place / f"{prefix}.trans.txt").write_text(f"{prefix}-0000 GO DO YOU HEAR\n{prefix}-0001 BUT IN LESS\n")
    (folder / "SPEAKERS.TXT").write_text("; ID |SEX\n")
    return folder


def test_librispeech(libri):
    found = read_utterances(libri)
    assert [(one.part, one.id, one.speaker, one.text) for one in found] == [
        ("dev", "1272-128104-0000", "1272", "GO DO YOU HEAR"),
        ("dev", "1272-128104-0001", "1272", "BUT IN LESS"),
        ("train", "84-121123-0000", "84", "GO DO YOU HEAR"),
        ("train", "84-121123-0001", "84", "BUT IN LESS"),
        ("train", "7-8-0000", "7", "GO DO YOU HEAR"),
        ("train", "7-8-0001", "7", "BUT IN LESS"),
    ]
    assert found[2].audio == libri / "train-clean-100/84/121123/84-121123-0000.flac"
    for below in ("dev-clean", "dev-clean/1272", "dev-clean/1272/128104"):
        assert [(one.id, one.part) for one in read_utterances(libri / below)] == [(one.id, None) for one in found[:2]]


def test_librispeech_with_holes(libri):
    place = libri / "dev-clean/1272/128104"
    (place / "1272-128104-0001.flac").unlink()
    clip(place / "1272-128104-0002.flac")
    utterances, problems = read_all(libri)
    assert len(utterances) == 5 and list(map(str, problems)) == [
        "dev-clean/1272/128104/1272-128104.trans.txt row 2: no audio file 1272-128104-0001.flac beside it; fetch it, "
        "or remove the line",
        "dev-clean/1272/128104/1272-128104-0002.flac: no line in a .trans.txt beside it; add what is said, or remove "
        "the file",
    ]
