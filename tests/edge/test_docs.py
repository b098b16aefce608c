"""docs/edge.md is run from top to bottom: its Python in one module, its ``audiolora`` commands in the same folder."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import soundfile
import torch

from audiolora import cli

PAGE = Path(__file__).parents[2] / "docs" / "edge.md"

NETWORK = """
from tests.series.tiny_fleet import tiny_net
network = tiny_net
"""


def blocks() -> list[tuple[str, str]]:
    """(language, text) of each block of code that is to be run."""
    found = re.findall(r"(<!-- not run:[^\n]*\n)?^```(python|bash)\n(.*?)^```$", PAGE.read_text("utf-8"), re.M | re.S)
    return [(language, text) for not_run, language, text in found if not not_run]


@pytest.mark.slow
def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from audiolora.export.speech import drawn_clip
    from tests.export.ctc_models import ctc_model, processor
    from tests.series.tiny_fleet import adapted, forecaster, tiny_net
    from tests.speech.tiny_run import tiny_run
    from tests.speech.tiny_whisper import tiny_whisper

    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_pumps.py").write_text(NETWORK, encoding="utf-8")
    forecaster(tiny_net(seed=4)).save("devices/base")
    for name in ("pump1", "pump2"):
        forecaster(adapted(tiny_net(seed=4))).save(f"devices/{name}")
    tiny_whisper(tmp_path / "whisper")
    for name in ("door", "yard"):
        tiny_run(tmp_path / "runs" / name, tmp_path / "whisper")
    soundfile.write("door.wav", drawn_clip(3.0), 16_000)
    ctc_model(num_hidden_layers=1).save_pretrained("wav2vec2-digits")
    processor(tmp_path).save_pretrained("wav2vec2-digits")
    names: dict[str, object] = {"__name__": "page"}
    torch.manual_seed(0)
    for language, text in blocks():
        if language == "python":
            exec(compile(text, PAGE.name, "exec"), names)
            continue
        for line in text.splitlines():
            program, *words = shlex.split(line)
            assert program == "audiolora"
            with pytest.raises(SystemExit) as end:
                cli.run_app(cli.app, words)
            assert end.value.code == 0, line


def test_every_block_is_run_or_says_why_not() -> None:
    page = PAGE.read_text("utf-8")
    languages = set(re.findall(r"^```(\w*)$", page, re.M)) - {""}
    assert {"python", "bash", "text"} <= languages <= {"python", "bash", "text", "c", "cpp", "javascript", "html"}
    assert len(blocks()) >= 8 and all(len(why) > 8 for why in re.findall(r"<!-- not run:(.*?)-->", page))
