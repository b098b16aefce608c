"""docs/speech/ctc.md: its Python runs from top to bottom, and its commands are those that there are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.speech.ctc.tiny_ctc import tiny_ctc, write_clips

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "speech" / "ctc.md"


@pytest.mark.slow
def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    loaded = tiny_ctc(tmp_path / "made")
    loaded.model.save_pretrained("wav2vec2-letters")
    loaded.processor.save_pretrained("wav2vec2-letters")
    write_clips(tmp_path / "clips", 9)
    (block,) = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text("utf-8"), re.M | re.S)
    exec(compile(block, PAGE.name, "exec"), {"__name__": "page"})
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()


def test_its_options_are_the_recipe_s() -> None:
    text, recipe = PAGE.read_text("utf-8"), (ROOT / "recipes" / "asr_ctc.py").read_text("utf-8")
    settings = (ROOT / "audiolora" / "speech" / "training" / "settings.py").read_text("utf-8")
    compared = (ROOT / "recipes" / "compare_methods.py").read_text("utf-8")
    for option in re.findall(r"[ `]--([a-z][a-z-]+)", text):
        name = option.replace("-", "_")
        assert any(f"{name}: " in source for source in (recipe, settings, compared)), option
    assert re.search(r"^demo-ctc:", (ROOT / "Makefile").read_text("utf-8"), re.M)
