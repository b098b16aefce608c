"""docs/speech/data.md: its Python runs, its shell lines are the recipe's, and its table names every layout."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import soundfile

from audiolora.speech.data.layouts import find

PAGE = (Path(__file__).parents[2] / "docs" / "speech" / "data.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.M | re.S)


def test_the_page_s_python_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    soundfile.write("a.wav", np.full(16_000, 0.1), 16_000)
    for name, n in (("calls", 2), ("train", 30), ("test", 5)):
        rows = [
            {"audio": "a.wav", "text": f"{name} {i}", "id": f"{name}{i}", "start": i / 100, "speaker": "anna"}
            for i in range(n)
        ]
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("torn.jsonl").write_text('{"audio": "a.wav", "text": "fine"}\n{"audio": "gone.wav", "text": "?"}\n{\n')
    names: dict[str, object] = {}
    for text in blocks("python"):
        exec(compile(text, "data.md", "exec"), names)
    said = capsys.readouterr().out
    assert "calls0 calls 0 anna calls.jsonl row 1\n(16000,)\n" in said and "26 4 5\n" in said
    assert "torn.jsonl row 2: audio file" in said and said.endswith("2\n") and len(names["utterances"]) == 1


def test_its_commands_are_the_recipe_s():
    from recipes.asr_whisper import app

    lines = [shlex.split(line) for text in blocks("bash") for line in text.splitlines()]
    assert len(lines) == 3
    for program, recipe, *words in lines:
        assert (program, recipe) == ("python", "recipes/asr_whisper.py")
        app.parse_args(words, exit_on_error=False)


def test_every_prefix_is_named():
    for layout in (*find._FOLDERS, find._ANY_AUDIO):
        assert f"`{layout.name}:DATA`" in PAGE


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)#]+)", PAGE) or [None])
def test_links_lead_somewhere(link):
    assert link is None or (Path(__file__).parents[2] / "docs" / "speech" / link).exists()
