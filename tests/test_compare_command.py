"""``audiolora compare`` as a user meets it: runs as recipes leave them, and text files."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from audiolora import cli
from audiolora.files import write_json
from audiolora.run import open_run
from audiolora.speech.texts.normalizing import Normalizer
from audiolora.speech.texts.results import keep_texts

SAID = {"a": "press one now", "b": "good bye", "c": "two three four five"}
BETTER = {"a": "Press one now.", "b": "good bye", "c": "two three five"}
WORSE = {"a": "press two now", "b": "good buy", "c": "two"}


def kept(
    folder: Path, texts: dict[str, str] = BETTER, said: dict[str, str] = SAID, rules: Any = "basic", **changes: Any
) -> Path:
    """A finished run of speech, as far as `compare` reads it; zero-shot wrote WORSE."""
    run = open_run(folder, {"data": "calls.csv", "channel": "clean", **changes})
    normalize = Normalizer(rules, "en")
    speakers = {"a": "ann", "b": "bob", "c": "bob"}
    utterances: Any = [SimpleNamespace(id=i, text=said[i], speaker=speakers.get(i)) for i in said]
    keep_texts(folder, utterances, [WORSE.get(i, "") for i in said], [texts.get(i, "") for i in said], normalize)
    run.write("summary.json", {"normalize": normalize.record()})
    return folder


def command(*words: object) -> int:
    with pytest.raises(SystemExit) as end:
        cli.run_app(cli.app, ["compare", *map(str, words)])
    return int(end.value.code or 0)


def test_two_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """9 words: 5 wrong (two, buy, and three of c that are missing) against one missing."""
    first, second = kept(tmp_path / "first", WORSE), kept(tmp_path / "second")
    assert command(first, second, "--json", "--report", tmp_path / "page.html") == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["name"] for one in found["systems"]] == ["first", "second"]
    assert [one["wer"]["value"] for one in found["systems"]] == [pytest.approx(500 / 9), pytest.approx(100 / 9)]
    (change,) = found["differences"]
    assert change["points"] == pytest.approx(-400 / 9) and change["relative"] == pytest.approx(-80)
    assert (change["wins"], change["ties"], change["losses"]) == (3, 0, 0)
    assert found["by_speaker"]["ann"] == [pytest.approx(100 / 3), 0]
    assert found["by_speaker"]["bob"] == [pytest.approx(400 / 6), pytest.approx(100 / 6)]
    assert found["normalize"] == {"rules": "basic", "language": "en", "spellings": 0}
    assert command(first, second) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "first" in shown and "-44.44" in shown and "-80.0 %" in shown and "rules basic" in shown
    page = (tmp_path / "page.html").read_text("utf-8")
    HTMLParser().feed(page)
    assert "<script" not in page and "-44.44" in page and page.index("two three four five") < page.index("good bye")
    assert "<del>three four five</del>" in page and "<del>four</del>" in page and "bob" in page


def test_a_run_and_its_zero_shot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(kept(tmp_path / "demo"), "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["name"] for one in found["systems"]] == ["demo, zero-shot", "demo"]
    assert found["differences"][0]["points"] == pytest.approx(-400 / 9)


def test_a_run_and_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = kept(tmp_path / "demo")
    assert command(run, run, "--json") == 0
    (change,) = json.loads(capsys.readouterr().out)["differences"]
    assert (change["points"], change["better"], change["p_value"], change["told_apart"]) == (0, 0.5, 1.0, False)


def test_other_test_sets_are_refused_unless_what_is_shared_is_asked_for(tmp_path: Path, capsys: Any) -> None:
    first = kept(tmp_path / "first")
    second = kept(tmp_path / "second", said={"a": SAID["a"], "b": "good by", "d": "six"})
    assert command(first, second) == 2
    told = capsys.readouterr().err
    assert "1 utterances of first are not in second (c)" in told and "second are not in first (d)" in told
    assert "b: 'good bye', 'good by'" in told and "--common compares the 1 that are shared" in told
    assert command(first, second, "--common", "--json") == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["utterances"] == 1 and err.count("note: Only the 1 shared") == 3
    strangers = kept(tmp_path / "strangers", said={"x": "hello"})
    assert command(first, strangers, "--common") == 2
    assert "no utterance is shared" in capsys.readouterr().err


def test_other_rules_for_texts_are_refused_unless_one_is_named(tmp_path: Path, capsys: Any) -> None:
    first, second = kept(tmp_path / "first"), kept(tmp_path / "second", rules="none")
    assert command(first, second) == 2
    assert "other rules for texts" in capsys.readouterr().err
    assert command(first, second, "--normalize", "none", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["wer"]["value"] for one in found["systems"]] == [pytest.approx(300 / 9)] * 2  # Press, now., four


def test_runs_of_one_name_are_told_by_their_paths(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = kept(tmp_path / "a" / "demo", WORSE), kept(tmp_path / "b" / "demo")
    assert command(first, second, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["name"] for one in found["systems"]] == [str(first), str(second)]


@pytest.mark.parametrize("order", [1, -1])
def test_the_language_is_that_of_the_run_that_knows_it(tmp_path: Path, capsys: Any, order: int) -> None:
    runs = [kept(tmp_path / "first"), kept(tmp_path / "second")]
    rules = {"rules": "alphabet", "language": None, "spellings": 0}  # a CTC run that nobody told a language
    write_json(runs[0] / "summary.json", {"normalize": rules})
    assert command(*runs[::order], "--normalize", "auto", "--json") == 0
    assert json.loads(capsys.readouterr().out)["normalize"]["language"] == "en"


def test_references_with_nothing_in_them_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said, written = tmp_path / "said.txt", tmp_path / "written.txt"
    said.write_text("one\n\ntwo\n...\n", encoding="utf-8")
    written.write_text("one\n\ntwo\nno\n", encoding="utf-8")
    assert command(written, written, "--references", said) == 2
    assert "nothing is left of 2 references by the rules basic (line 2, line 4)" in capsys.readouterr().err


def test_what_else_differs_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(kept(tmp_path / "first"), kept(tmp_path / "second", channel="gsm")) == 0
    assert "note: The runs differ in channel: clean, gsm." in capsys.readouterr().err


def test_text_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {"said.txt": SAID, "first.txt": WORSE, "second.txt": {**BETTER, "b": ""}}
    for name, texts in files.items():
        (tmp_path / name).write_text("".join(f"{text}\n" for text in texts.values()), encoding="utf-8")
    said, first, second = (tmp_path / name for name in files)
    assert command(first, second, "--references", said, "--json", "--unit", "character") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["unit"] == "character" and found["systems"][1]["deletions"] == 3
    # Characters of first: one → two, 3; bye → buy, 2; "two" for 19, 16. Of second: 8, and " four".
    assert found["differences"][0]["points"] == pytest.approx(100 * (13 - 21) / 40)
    second.write_text("one line\n", encoding="utf-8")
    assert command(first, second, "--references", said) == 2
    assert "second.txt has 1 lines" in capsys.readouterr().err


def test_mistakes_are_told_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = kept(tmp_path / "good")
    old = kept(tmp_path / "old")
    (old / "texts.jsonl").unlink()
    broken = kept(tmp_path / "broken")
    (broken / "texts.jsonl").write_text('{"id": 1}\n', encoding="utf-8")
    open_run(tmp_path / "begun", {"data": "x"})
    text = tmp_path / "a.txt"
    text.write_text("hello\n", encoding="utf-8")
    for words, message in (
        ((), "name two runs"),
        ((good, old), "keeps no texts of its test clips"),
        ((good, broken), "line 1: not a row of texts"),
        ((good, tmp_path / "begun"), "not finished"),
        ((good, tmp_path / "nothing"), "holds no run"),
        ((good, text), "text files are compared with --references"),
        ((text, "--references", text), "two text files or more"),
        ((good, good, "--language", "fr"), "--language goes with"),
        ((good, good, "--report", tmp_path), "is a folder"),
        ((good, good, "--confidence", 95), "confidence must lie between 0 and 1"),
    ):
        assert command(*words) == 2, words
        assert message in capsys.readouterr().err
