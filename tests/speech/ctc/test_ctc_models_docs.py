"""docs/speech/ctc_models.md: its Python runs, its commands run on a run, and its table names the presets' targets."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from audiolora import cli
from audiolora.presets import conformer, wav2vec2
from tests.speech.ctc.ctc_place import place
from tests.speech.ctc.saved_models import save_base

PAGE = (Path(__file__).parents[3] / "docs" / "speech" / "ctc_models.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.M | re.S)


def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    save_base(tmp_path / "wav2vec2-letters")
    for text in blocks("python"):
        exec(compile(text, "ctc_models.md", "exec"), {})
    place(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "run").rename(tmp_path / "runs" / "calls")
    lines = [shlex.split(line) for text in blocks("bash") for line in text.splitlines()]
    assert len(lines) == 4
    for program, *words in lines:
        assert program == "audiolora"
        with pytest.raises(SystemExit) as end:
            cli.run_app(cli.app, words)
        assert end.value.code == 0, words
    assert "vocabulary" in capsys.readouterr().out


@pytest.mark.parametrize(
    "preset",
    [wav2vec2.WAV2VEC2, wav2vec2.SEW_D, conformer.WAV2VEC2_CONFORMER, conformer.PARAKEET],
    ids=lambda p: p.family,
)
def test_the_table_names_the_targets(preset: object) -> None:
    for group in ("attention", "ffn"):
        assert ", ".join(f"`{name}`" for name in preset.groups[group]) in PAGE  # type: ignore[attr-defined]
