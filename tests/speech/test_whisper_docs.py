"""docs/speech/whisper.md: its Python runs from top to bottom, and so do its commands."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import soundfile

from audiolora import cli
from tests.speech.tiny_run import tiny_run
from tests.speech.tiny_whisper import tiny_whisper

PAGE = Path(__file__).parents[2] / "docs" / "speech" / "whisper.md"


def _let_it_write_timestamps(path: Path) -> None:
    config = json.loads(path.read_text())
    config["suppress_tokens"] = [t for t in config["suppress_tokens"] if t < config["no_timestamps_token_id"]]
    path.write_text(json.dumps(config))


@pytest.mark.slow
def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_whisper(tmp_path / "whisper")
    _let_it_write_timestamps(tmp_path / "whisper" / "generation_config.json")
    tiny_run(tmp_path / "runs" / "door", tmp_path / "whisper")
    noise = np.random.default_rng(0).standard_normal(16_000 * 34) * 0.1
    noise[16_000 * 16 : 16_000 * 17] = 0
    soundfile.write("meeting.wav", noise, 16_000)
    soundfile.write("door.wav", noise[:32_000], 16_000)
    names: dict[str, object] = {"__name__": "page"}
    blocks = re.findall(r"^```(python|bash)\n(.*?)^```$", PAGE.read_text("utf-8"), re.M | re.S)
    assert {language for language, _ in blocks} == {"python", "bash"}
    for language, text in blocks:
        if language == "python":
            exec(compile(text, PAGE.name, "exec"), names)
            continue
        for line in text.splitlines():
            program, *words = shlex.split(line)
            assert program == "audiolora"
            with pytest.raises(SystemExit) as end:
                cli.run_app(cli.app, words)
            assert end.value.code == 0, line
    assert (tmp_path / "meeting.srt").is_file() and (tmp_path / "meeting.json").is_file()
