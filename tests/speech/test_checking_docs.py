"""docs/speech/checking.md is run from top to bottom, and its table has every kind of finding."""

import re
import shlex
from pathlib import Path

import pytest

from audiolora import cli
from audiolora.speech.data.findings import KINDS
from tests.speech.checks.broken_manifest import write_broken_manifest

PAGE = (Path(__file__).parents[2] / "docs" / "speech" / "checking.md").read_text("utf-8")


@pytest.mark.slow
def test_the_page_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AUDIOLORA_CACHE", str(tmp_path / "cache"))
    write_broken_manifest(tmp_path, 48, 12)
    Path("manifest.jsonl").rename("train.jsonl")
    Path("test.jsonl").write_text(Path("train.jsonl").read_text().splitlines()[0])
    names: dict[str, object] = {"__name__": "page"}
    blocks = re.findall(r"^```(python|bash)\n(.*?)^```$", PAGE, re.M | re.S)
    assert [language for language, _ in blocks] == ["bash", "python"]
    for language, text in blocks:
        if language == "python":
            exec(compile(text, "checking.md", "exec"), names)
            continue
        program, *words = shlex.split(text)
        assert program == "audiolora"
        with pytest.raises(SystemExit) as end:
            cli.run_app(cli.app, words)
        assert end.value.code == 3 and Path("check.html").is_file()
    assert len(names["utterances"]) == 48 - 11, "a letter outside --vocabulary is no fault without it"
    assert len(Path("bad_rows.tsv").read_text().splitlines()) == 12
    assert len(Path("bad.tsv").read_text().splitlines()) == 13


def test_the_table_tells_every_kind():
    table = "\n".join(line.lower() for line in PAGE.splitlines() if line.startswith("|"))
    for kind in KINDS.values():
        words = re.findall(r"[a-z]{4,}", kind.title.lower())
        assert any(word in table for word in words) and kind.severity in ("bad", "doubtful"), kind.title
