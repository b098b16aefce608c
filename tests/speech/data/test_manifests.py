import json
import logging
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile

from audiolora.speech.checks.checking import check_utterances
from audiolora.speech.data.audio import AudioError, read_audio
from audiolora.speech.data.manifests import DataError, Utterance, read_all, read_utterances


def write_wav(path: Path, seconds: float = 0.1, value: float = 0.1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.full(round(16000 * seconds), value, dtype=np.float32), 16000, subtype="FLOAT")
    return path


@pytest.fixture
def folder(tmp_path):
    """Three clips in a folder `clips` beside the manifests."""
    for name in "abc":
        write_wav(tmp_path / "clips" / f"{name}.wav")
    return tmp_path


def manifest(folder: Path, name: str, rows: list[dict]) -> Path:
    path = folder / name
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        mark = "\t" if path.suffix == ".tsv" else ","
        lines = [mark.join(rows[0]), *(mark.join(str(value) for value in row.values()) for row in rows)]
        path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("name", ["train.jsonl", "train.csv", "train.tsv"])
def test_manifests_read_the_same(folder, name):
    rows = [
        {"audio": "clips/a.wav", "text": "héllo", "speaker": "anna"},
        {"audio": str(folder / "clips/b.wav"), "text": " two words ", "speaker": ""},
    ]
    first, second = read_utterances(manifest(folder, name, rows))
    row = 1 if name.endswith("jsonl") else 2  # a table's header is its row 1
    assert first == Utterance("clips/a.wav", folder / "clips/a.wav", "héllo", f"{name} row {row}", "anna")
    assert second.audio == folder / "clips/b.wav" and second.text == "two words" and second.speaker is None


@pytest.mark.parametrize("audio", ["audio_filepath", "path", "file"])
@pytest.mark.parametrize("text", ["transcript", "sentence", "transcription"])
def test_common_column_names_are_known(folder, audio, text):
    path = manifest(folder, "x.tsv", [{audio: "clips/a.wav", text: "hello"}])
    assert read_utterances(path)[0].text == "hello"


def test_columns_can_be_named_and_are_then_not_guessed(folder):
    path = manifest(folder, "x.jsonl", [{"clip": "clips/a.wav", "said": "hello", "text": "other", "id": 7}])
    assert read_utterances(path, audio_column="clip", text_column="said")[0] == Utterance(
        "7", folder / "clips/a.wav", "hello", "x.jsonl row 1"
    )
    with pytest.raises(DataError, match=r"x.jsonl: no column 'words'; found 'clip', 'said', 'text', 'id'"):
        read_utterances(path, audio_column="clip", text_column="words")
    with pytest.raises(DataError, match=r"no column 'audio'; found 'clip'"):
        read_utterances(path)


def test_quotes_commas_and_byte_order_marks(folder):
    (folder / "x.csv").write_bytes('\ufeffaudio,text\r\nclips/a.wav,"one, ""two"""\r\n'.encode())
    assert read_utterances(folder / "x.csv")[0].text == 'one, "two"'
    (folder / "x.tsv").write_text('audio\ttext\nclips/a.wav\t"so he said\nclips/b.wav\tand left\n')
    assert [utterance.text for utterance in read_utterances(folder / "x.tsv")] == ['"so he said', "and left"]


def test_every_bad_row_is_in_one_error(folder):
    (folder / "x.jsonl").write_text(
        '{"audio": "clips/a.wav", "text": "fine"}\n'
        "{nonsense\n"
        '{"audio": "clips/b.wav", "text": "  "}\n'
        '{"audio": "clips/b.wav"}\n'
        '{"audio": "clips/gone.wav", "text": "hello"}\n'
        '{"audio": "clips", "text": "hello"}\n'
        '{"audio": "clips/a.wav", "text": "again"}\n'
        '["a list"]\n'
        '{"text": "no audio"}\n'
        '{"audio": "clips/c.wav", "text": "half \\ud800"}\n'
        '{"audio": "clips/c.wav", "text": "piece", "offset": "2,5"}\n'
    )
    with pytest.raises(DataError) as caught:
        read_utterances(folder / "x.jsonl")
    message = str(caught.value)
    assert message.split("\n")[0].endswith("x.jsonl: 10 bad rows of 11:") and len(caught.value.problems) == 10
    for row, fault in {
        2: "not JSON",
        3: "the text is empty",
        4: "column 'text' must hold the transcript",
        5: "does not exist",
        6: "is a folder",
        7: "id 'clips/a.wav' was already used in x.jsonl row 1",
        8: "must be an object",
        9: "column 'audio' must hold the path",
        10: "not Unicode",
        11: "offset must be a number of seconds, got '2,5'",
    }.items():
        assert any(line.strip().startswith(f"x.jsonl row {row}:") and fault in line for line in message.splitlines()), (
            fault
        )


@pytest.mark.parametrize("audio", ["x" * 300, "~nobody/a.wav", "a/" * 3000])
def test_paths_that_the_system_refuses_are_missing_files(folder, audio):
    rows = [{"audio": "clips/a.wav", "text": "hello"}, {"audio": audio, "text": "hello"}]
    for more in ({}, {"offset": 0, "duration": 0.1}):
        path = manifest(folder, "x.jsonl", [{**row, **more} for row in rows])
        found = read_all(path)
        assert len(found.utterances) == 1
        assert [(one.where, one.kind) for one in found.bad_rows] == [("x.jsonl row 2", "missing")]
    with pytest.raises(AudioError, match="no such file"):
        read_audio("x" * 300)


@pytest.mark.parametrize("mark", [",", "\t"])
def test_rows_of_tables_are_counted_as_spreadsheets_count_them_and_none_is_lost(folder, mark):
    """Empty rows count, a quoted line end does not, and behind a field too long for Python's reader it goes on."""
    quoted = '"one\nand more"' if mark == "," else "one"
    lines = [
        "",
        "audio,text",
        f"clips/a.wav,{quoted}",
        "",
        "gone.wav,two",
        "clips/b.wav," + "x" * 140_000,
        "",
        "clips/c.wav",
    ]
    path = folder / ("x.csv" if mark == "," else "x.tsv")
    path.write_text("\r\n".join(line.replace(",", mark) for line in [*lines, "clips/c.wav,three", ""]), newline="")
    found = read_all(path)
    assert [(one.where, one.text.split()[0]) for one in found.utterances] == [
        (f"{path.name} row 3", "one"),
        (f"{path.name} row 9", "three"),
    ]
    assert [one.where for one in found.bad_rows] == [f"{path.name} row {row}" for row in (6, 5, 8)]
    assert "field larger than field limit" in found.bad_rows[0].reason


def test_twenty_problems_are_listed_and_the_rest_counted(folder):
    path = manifest(folder, "x.csv", [{"audio": f"gone{i}.wav", "text": "hello"} for i in range(33)])
    with pytest.raises(DataError) as caught:
        read_utterances(path)
    lines = str(caught.value).splitlines()
    assert len(lines) == 22 and lines[1].startswith("  x.csv row 2: audio file") and lines[-1] == "  … and 13 more"


@pytest.mark.parametrize(
    "name, content", [("x.jsonl", ""), ("x.jsonl", "\n\n"), ("x.csv", "audio,text\n"), ("x.tsv", "")]
)
def test_empty_manifests(folder, name, content):
    (folder / name).write_text(content)
    with pytest.raises(DataError, match=f"{name}: empty"):
        read_utterances(folder / name)


def test_things_that_are_no_manifest(folder):
    with pytest.raises(DataError, match=r"no such file or folder, and no built-in set .*prompts-en"):
        read_utterances("promts-en")
    (folder / "x.csv").write_bytes(b"audio,text\nclips/a.wav,caf\xe9\n")
    with pytest.raises(DataError, match=r"x.csv: not UTF-8 text \(byte 26\)"):
        read_utterances(folder / "x.csv")
    (folder / "x.xlsx").touch()
    with pytest.raises(DataError, match=r"x.xlsx: not a manifest.*.jsonl, .json, .csv, .tsv.*.tar"):
        read_utterances(folder / "x.xlsx")
    (folder / "y.csv").write_text("audio,text\nclips/a.wav,one, two\n")
    with pytest.raises(DataError, match=r"y.csv row 2: more fields than the header"):
        read_utterances(folder / "y.csv")


def test_folder_of_clips_with_transcripts(folder):
    for name in "abc":
        (folder / f"clips/{name}.txt").write_text(f"this is {name}\n")
    write_wav(folder / "clips/deep/d.wav").with_suffix(".txt").write_text("this is d")
    found = {utterance.id: utterance.text for utterance in read_utterances(folder / "clips")}
    assert found == {"a.wav": "this is a", "b.wav": "this is b", "c.wav": "this is c", "deep/d.wav": "this is d"}
    (folder / "clips/b.txt").unlink()
    with pytest.raises(DataError, match=r"clips/b.wav: no transcript beside it; write what is said into b.txt"):
        read_utterances(folder / "clips")
    (folder / "void").mkdir()
    with pytest.raises(DataError, match=r"void: holds no audio"):
        read_utterances(folder / "void")


def test_names_that_are_not_utf8_are_bad_rows_that_can_be_written_down(folder):
    """Their ids could not: the run would end when it writes its split."""
    with tarfile.open(folder / "x.tar", "w") as tar:
        for stem in ("caf\udce9", "fine"):
            for suffix in ("wav", "txt"):
                path = folder / f"latin/{stem}.{suffix}"
                path.parent.mkdir(exist_ok=True)
                path.write_bytes((folder / "clips/a.wav").read_bytes() if suffix == "wav" else b"hello")
                tar.add(path, path.name)
    (folder / "latin/caf\udcea.wav").touch()
    for data, wheres in (("latin", ["caf\\udcea.wav", "caf\\udce9.wav"]), ("x.tar", ["x.tar key caf\\udce9"])):
        for _ in range(2):  # of a tar, by its index
            found = read_all(folder / data)
            assert [one.id.removesuffix(".wav") for one in found.utterances] == ["fine"]
            assert [one.where.removeprefix("latin/") for one in found.bad_rows] == wheres
            assert "is not Unicode" in found.bad_rows[-1].reason
            assert "\n".join(map(str, found.bad_rows)).encode()


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl"])
def test_audio_folder_with_metadata(folder, name):
    manifest(folder / "clips", name, [{"file_name": "a.wav", "transcription": "hello"}])
    assert read_utterances(folder / "clips") == [
        Utterance("a.wav", folder / "clips/a.wav", "hello", f"{name} row {1 if name.endswith('jsonl') else 2}")
    ]


def test_saved_datasets(folder):
    import datasets

    paths = [str(folder / f"clips/{name}.wav") for name in "ab"]
    write_wav(folder / "clips/b.wav", value=0.2)
    plain = datasets.Dataset.from_dict({"audio": paths, "text": ["one", "two"]})
    encoded = datasets.Dataset.from_dict(
        {"audio": [{"bytes": Path(path).read_bytes(), "path": None} for path in paths], "sentence": ["one", "two"]}
    ).cast_column("audio", datasets.Audio(decode=True))
    plain.save_to_disk(str(folder / "plain"))
    encoded.save_to_disk(str(folder / "encoded"))
    datasets.DatasetDict({"train": plain, "test": encoded}).save_to_disk(str(folder / "both"))
    assert [utterance.audio for utterance in read_utterances(folder / "plain")] == [Path(path) for path in paths]
    found = read_utterances(folder / "encoded")
    assert [utterance.audio.read() for utterance in found] == [Path(path).read_bytes() for path in paths]
    assert [(utterance.text, utterance.where) for utterance in found] == [
        ("one", "encoded row 0"),
        ("two", "encoded row 1"),
    ]
    assert [utterance.id for utterance in read_utterances(f"{folder}/both:test")] == [
        utterance.id for utterance in found
    ]
    assert [utterance.part for utterance in read_utterances(folder / "both")] == ["train", "train", "test", "test"]
    datasets.DatasetDict({"train": plain, "extra": encoded}).save_to_disk(str(folder / "odd"))
    with pytest.raises(DataError, match=r"several splits, and 'extra' is not .* one of .*odd:train, .*odd:extra"):
        read_utterances(folder / "odd")
    with pytest.raises(DataError, match=r"no split 'dev'"):
        read_utterances(f"{folder}/both:dev")
    with pytest.raises(DataError, match=r"without splits"):
        read_utterances(f"{folder}/plain:train")


def utterances(folder: Path, texts: dict[str, str]) -> list[Utterance]:
    return [
        Utterance(name, folder / f"clips/{name}.wav", text, f"x.jsonl row {row}")
        for row, (name, text) in enumerate(texts.items(), start=1)
    ]


def characters(text: str) -> list[int]:
    return [ord(character) for character in text.encode("ascii").decode()]


def test_check_finds_every_bad_clip_and_text(folder, caplog):
    write_wav(folder / "clips/long.wav", seconds=1.5)
    write_wav(folder / "clips/nan.wav", value=float("nan"))
    write_wav(folder / "clips/zero.wav", seconds=0)
    (folder / "clips/torn.wav").write_bytes(b"RIFF no more")
    texts = {"a": "hello", "long": "x", "nan": "x", "zero": "x", "torn": "x", "b": "a longer text", "c": "café"}
    given = utterances(folder, texts)

    def check(**options):
        return check_utterances(given, max_duration_s=1.0, encode=characters, max_tokens=10, progress=False, **options)

    faults = [
        (2, "long.wav: 1.5 s, longer than the limit of 1 s"),
        (3, "nan.wav: NaN"),
        (4, "zero.wav: zero length"),
        (5, "torn.wav: corrupt"),
        (6, "13 tokens, more than the limit of 10"),
        (7, "cannot hold the text 'café'"),
    ]
    with pytest.raises(DataError, match=r"^6 of 7 utterances cannot be used:") as caught:
        check()
    with caplog.at_level(logging.WARNING):
        assert check(skip_bad=True) == given[:1]
    for (row, fault), line, logged in zip(faults, str(caught.value).splitlines()[1:], caplog.messages, strict=True):
        assert f"x.jsonl row {row}: " in line and fault in line
        assert logged.startswith("skipped ") and fault in logged


def test_check_compares_what_the_tokenizer_gives_back(folder):
    given = utterances(folder, {"a": "hello  there", "b": "Hello"})
    lossy = {"encode": lambda text: characters(text.lower()), "decode": lambda ids: "".join(map(chr, ids))}
    with pytest.raises(DataError, match=r"row 2: .*'Hello' comes back as 'hello'"):
        check_utterances(given, progress=False, **lossy)
    assert check_utterances(given, progress=False, skip_bad=True, **lossy) == given[:1]


def test_check_refuses_to_skip_everything(folder):
    with pytest.raises(DataError, match=r"1 of 1 .*\n.*into nothing"):
        check_utterances(utterances(folder, {"a": "x"}), encode=lambda text: [], skip_bad=True, progress=False)


def test_progress_goes_to_standard_error(folder, capsys):
    assert len(check_utterances(utterances(folder, {"a": "x"}))) == 1
    assert capsys.readouterr().out == ""
