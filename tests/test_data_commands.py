"""`audiolora data check` in a folder as its user has it: what it says, writes and ends with."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from audiolora import cli
from audiolora.speech.data.findings import KINDS
from tests.speech.checks.broken_manifest import LETTERS, clip, write_broken_manifest
from tests.speech.ctc.tiny_ctc import tiny_ctc
from tests.speech.tiny_whisper import tiny_whisper


@pytest.fixture
def audiolora(capsys: pytest.CaptureFixture[str], monkeypatch, tmp_path) -> Callable[..., SimpleNamespace]:
    """Runs a command line in the folder: its status, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AUDIOLORA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "150")

    def run(*words: object) -> SimpleNamespace:
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.run_app(cli.app, [str(word) for word in words])
        return SimpleNamespace(status=end.value.code, **capsys.readouterr()._asdict())

    return run


def write_part(name: str, texts: list[str], seed: int, **columns) -> None:
    """A manifest of noise with these texts."""
    rng = np.random.default_rng(seed)
    rows = []
    for i, text in enumerate(texts):
        path = Path(f"{Path(name).stem}{i}.wav")
        soundfile.write(path, clip(rng, 1.0), 8000)
        rows.append({"audio": str(path), "text": text, **columns})
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


class Page(HTMLParser):
    """The cells and ids of an HTML page, and the elements that were not closed."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.cells: list[str] = []
        self.ids: list[str] = []
        self.open: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in ("meta", "link", "br", "path", "use"):
            self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_endtag(self, tag):
        if tag in self.open:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.cells[-1] += data


def test_data_without_fault_ends_with_0(audiolora):
    write_part("train.jsonl", ["one two", "three"], seed=0)
    said = audiolora("data", "check", "train.jsonl")
    assert said.status == 0 and "nothing found wrong with 2 rows" in said.out and "8,000 Hz (2)" in said.out
    assert audiolora("data", "check", "train.jsonl", "--vocabulary", LETTERS).status == 0


def test_rows_of_manifests_of_the_same_name_are_told_apart(audiolora):
    for place in ("monday", "tuesday"):
        for part in ("", "train", "test"):
            Path(place, part).mkdir(exist_ok=True)
            Path(place, part, "metadata.csv" if part else "calls.csv").write_text("audio,text\ngone.wav,hello\n")
    found = json.loads(audiolora("data", "check", "monday/calls.csv", "tuesday/calls.csv", "--json").out)
    assert [one["row"] for one in found["findings"]] == ["monday/calls.csv row 2", "tuesday/calls.csv row 2"]
    assert (found["rows"], found["bad_rows"]) == (2, 2)
    found = json.loads(audiolora("data", "check", "metadata:monday", "--json").out)
    assert [one["row"] for one in found["findings"]] == ["test/metadata.csv row 2", "train/metadata.csv row 2"]
    assert found["bad_rows"] == 2


def test_a_part_of_which_no_row_can_be_read_is_a_part(audiolora):
    write_part("train.jsonl", ["one"], seed=0)
    Path("test.csv").write_text("audio,text\ngone.wav,hello\n")
    found = json.loads(audiolora("data", "check", "test.csv", "train.jsonl", "--json").out)
    assert [(part["part"], part["clips"]) for part in found["parts"]] == [("test.csv", 0), ("train.jsonl", 1)]


def test_every_bad_row_is_on_the_page_in_the_table_and_in_the_json(audiolora, tmp_path):
    expected = write_broken_manifest(tmp_path, 120, 24)
    words = ["data", "check", "manifest.jsonl", "--vocabulary", LETTERS]
    said = audiolora(*words, "--out", "report.html", "--bad-rows", "bad.tsv")
    assert said.status == 3 and "24 of 120 rows are bad" in said.out and "report: report.html" in said.err
    for kind in set(expected.values()):
        assert re.search(rf"bad +{re.escape(KINDS[kind].title)} +{list(expected.values()).count(kind)} ", said.out), (
            kind
        )
    listed = [line.split("\t")[:2] for line in Path("bad.tsv").read_text().splitlines()[1:]]
    assert dict(listed) == expected and len(listed) == 24
    page = Page(tmp_path / "report.html")
    assert page.open == [] and len(set(page.ids)) == len(page.ids) and set(expected.values()) <= set(page.ids)
    assert set(expected) <= set(page.cells)
    assert not re.search(r'(src|href)="(https?:)?//', Path("report.html").read_text())
    found = json.loads(audiolora(*words, "--json").out)
    assert {one["row"]: one["kind"] for one in found["findings"] if one["severity"] == "bad"} == expected
    assert (found["rows"], found["bad_rows"]) == (120, 24) and all(one["remedy"] for one in found["findings"])
    assert found["letters_outside"] == {"ß": 2}


def test_parts_that_share_rows(audiolora):
    write_part("train.jsonl", ["one two", "three four"], seed=0, speaker="anna", language="it")
    write_part("test.jsonl", ["one, two!", "five"], seed=0, speaker="anna")
    found = json.loads(audiolora("data", "check", "train.jsonl", "test.jsonl", "--json").out)
    assert [(one["kind"], one["row"]) for one in found["findings"]] == [
        ("leak-audio", "test.jsonl row 1"),
        ("leak-audio", "test.jsonl row 2"),
        ("leak-text", "test.jsonl row 1"),
        ("leak-speaker", "test.jsonl row 1"),
    ]
    assert [part["part"] for part in found["parts"]] == ["train.jsonl", "test.jsonl"]
    assert found["counts"]["language"] == {"it": 2, "not said": 2} and found["counts"]["speaker"] == {"anna": 4}


def test_parts_that_the_data_name(audiolora):
    write_part("a.jsonl", ["one", "two"], seed=0)
    lines = [json.loads(line) for line in Path("a.jsonl").read_text().splitlines()]
    Path("b").mkdir()
    for name in ("train", "test"):
        Path(f"b/{name}.jsonl").write_text(json.dumps({**lines[0], "audio": "../" + lines[0]["audio"]}) + "\n")
    found = json.loads(audiolora("data", "check", "b/train.jsonl", "b/test.jsonl", "--json").out)
    assert [one["kind"] for one in found["findings"]] == ["leak-audio", "leak-text"]


def test_what_a_whisper_takes(audiolora, tmp_path):
    tiny_whisper(tmp_path / "whisper")
    write_part("train.jsonl", ["one two", "a" * 500, "(…)"], seed=0)
    found = json.loads(audiolora("data", "check", "train.jsonl", "--model", "whisper", "--json").out)
    bad = {one["row"]: one["kind"] for one in found["findings"] if one["severity"] == "bad"}
    assert bad == {"train.jsonl row 2": "tokens", "train.jsonl row 3": "no-words"}


def test_what_a_ctc_model_takes(audiolora, tmp_path):
    loaded = tiny_ctc(tmp_path / "parts")
    loaded.model.save_pretrained(tmp_path / "ctc")
    loaded.processor.save_pretrained(tmp_path / "ctc")
    write_part("train.jsonl", ["hello", "hello " * 60, "grüße"], seed=0)
    found = json.loads(audiolora("data", "check", "train.jsonl", "--model", "ctc", "--json").out)
    bad = {one["row"]: one["kind"] for one in found["findings"] if one["severity"] == "bad"}
    assert bad == {"train.jsonl row 2": "frames", "train.jsonl row 3": "vocabulary"}
    assert set(found["letters_outside"]) == {"ü", "ß"}


def test_a_channel_makes_clips_longer(audiolora):
    write_part("train.jsonl", ["one two", "three"], seed=0)
    words = ["data", "check", "train.jsonl", "--max-duration", "1.5"]
    assert audiolora(*words).status == 0
    slow = audiolora(*words, "--channel", "rate0.5")
    assert slow.status == 3 and "2 times as long after the channel" in slow.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "name what to check: audiolora data check train.csv"),
        (["none.jsonl"], "none.jsonl: no such file or folder"),
        (["train.jsonl", "train.jsonl"], "train.jsonl is given twice"),
        (["train.jsonl", "--model", "m", "--vocabulary", "abc"], "--model brings its own vocabulary"),
        (["train.jsonl", "--language", "it"], "--language goes with --model"),
        (["train.jsonl", "--max-duration", "0"], "--max-duration must be above 0 s, got 0"),
        (["train.jsonl", "--workers", "-1"], "workers must not be negative"),
        (["train.jsonl", "--vocabulary", "none.json"], "none.json: cannot be read as an alphabet"),
        (["train.jsonl", "--vocabulary", ""], "an alphabet needs letters"),
        (["train.jsonl", "--out", "."], "--out . is a folder; name a file"),
    ],
    ids=str,
)
def test_mistakes_are_told_in_a_line(audiolora, words, message):
    write_part("train.jsonl", ["one"], seed=0)
    said = audiolora("data", "check", *words)
    assert said.status == 2 and message in said.err and said.err.count("\n") == 1 and said.out == ""


def test_an_alphabet_from_files(audiolora):
    write_part("train.jsonl", ["abba", "Abc, dab?"], seed=0)
    Path("vocab.json").write_text(json.dumps({"<pad>": 0, "<unk>": 1, "|": 2, "a": 3, "b": 4}))
    Path("letters.txt").write_text("a\nb\n")
    for file in ("vocab.json", "letters.txt", "ab"):
        found = json.loads(audiolora("data", "check", "train.jsonl", "--vocabulary", file, "--json").out)
        assert found["letters_outside"] == {"c": 1, "d": 1} and found["bad_rows"] == 1
