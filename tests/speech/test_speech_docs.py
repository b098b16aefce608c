"""docs/speech/decoding.md and comparing.md: their Python runs as it stands, their commands in the same folder."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from audiolora import cli
from audiolora.edge.ctc_search import log_softmax
from tests.export.ctc_models import ctc_model, processor

DOCS = Path(__file__).parents[2] / "docs" / "speech"
BLOCK = re.compile(r"(<!-- not run:[^\n]*\n)?^```(python|bash)\n(.*?)^```$", re.M | re.S)


@pytest.mark.parametrize("page", ["decoding.md", "comparing.md"])
def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, page: str) -> None:
    monkeypatch.chdir(tmp_path)
    said = {
        "said": "press one now\ngood bye\n",
        "attention": "press two now\ngood buy\n",
        "conv": "press one\ngood bye\n",
    }
    for name, texts in said.items():
        Path(f"{name}.txt").write_text(texts, encoding="utf-8")
    model = ctc_model(num_hidden_layers=1)
    drawn = np.random.default_rng(0)
    names: dict[str, Any] = {"__name__": "page", "processor": processor(tmp_path), "model": model}
    names["samples"] = drawn.normal(size=8000).astype(np.float32)
    names["log_probs"] = log_softmax(drawn.normal(size=(20, model.config.vocab_size)))
    blocks = [
        (language, text) for not_run, language, text in BLOCK.findall((DOCS / page).read_text("utf-8")) if not not_run
    ]
    assert len(blocks) >= 3
    for language, text in blocks:
        if language == "python":
            exec(compile(text, page, "exec"), names)
            continue
        for line in text.splitlines():
            program, *words = shlex.split(line)
            assert program == "audiolora"
            with pytest.raises(SystemExit) as end:
                cli.run_app(cli.app, words)
            assert not end.value.code, line


def test_five_pieces_of_two_words(capsys: pytest.CaptureFixture[str]) -> None:
    """What comparing.md says of Hindi."""
    from audiolora.speech.texts.normalizing import Normalizer

    hindi = "नमस्ते दुनिया"
    assert [len(Normalizer(rules, "hi")(hindi).split()) for rules in ("whisper", "basic")] == [5, 2]
