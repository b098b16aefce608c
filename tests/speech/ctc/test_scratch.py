"""The small wav2vec2 trained from scratch: once, whole or not there, continued, and named as what it is."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from audiolora.speech.ctc import scratch, training
from audiolora.speech.ctc.models import load_ctc
from audiolora.speech.ctc.settings import CtcTrainingSettings
from audiolora.speech.data import prompts
from audiolora.speech.data.rows import DataError
from audiolora.speech.training import trainer

TINY = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "intermediate_size": 16,
    "conv_dim": (8,) * 7,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
}


@pytest.fixture
def digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Recordings named as the data set's, tones of half a second, 8 kHz; an empty cache; a tiny network, two epochs."""
    folder = tmp_path / "data" / "spoken_digits" / "recordings"
    folder.mkdir(parents=True)
    t = np.arange(4_000) / 8_000
    for digit in range(10):
        for index in (0, 5, 7):
            tone = np.sin(2 * np.pi * (200 + 100 * digit + index) * t).astype(np.float32)
            soundfile.write(folder / f"{digit}_ann_{index}.wav", 0.3 * tone, 8_000)
    monkeypatch.setenv("AUDIOLORA_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("AUDIOLORA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(scratch, "_NETWORK", {**scratch._NETWORK, **TINY})
    monkeypatch.setattr(scratch, "scratch_settings", lambda: CtcTrainingSettings(epochs=2, batch_size=5))
    return folder


def test_it_is_trained_once_and_says_what_it_is(digits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said: list[str] = []
    first = load_ctc("scratch:spoken-digits", log=said.append)
    assert any("from scratch on 10 recordings" in line and "happens once" in line for line in said)
    assert first.name == "scratch:spoken-digits" and first.origin.startswith(
        "trained from scratch here on spoken digits"
    )
    assert not first.new_head and "pretrained" not in first.origin
    folder = scratch.scratch_folder()
    assert [path.name for path in folder.parent.iterdir() if path.is_dir()] == [folder.name]
    card = (folder / "README.md").read_text()
    assert "Not pretrained" in card and "Zohar Jackson" in card and "CC BY-SA 4.0" in card
    facts = json.loads((folder / "scratch.json").read_text())
    assert (facts["n_train"], facts["n_test"], facts["epochs"]) == (10, 10, 2)
    assert facts["parameters"] == sum(p.numel() for p in first.model.parameters())
    assert capsys.readouterr().out == ""  # where commands write their results

    again: list[str] = []
    second = load_ctc("scratch:spoken-digits", log=again.append)
    assert again == []
    for name, tensor in first.model.state_dict().items():
        assert torch.equal(tensor, second.model.state_dict()[name]), name


@pytest.mark.slow
def test_an_interrupted_training_is_continued(digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the weights of one that was not."""
    whole = load_ctc("scratch:spoken-digits", log=lambda line: None).model.state_dict()
    monkeypatch.setenv("AUDIOLORA_CACHE", str(digits / "another cache"))
    train = training.train_ctc

    def interrupted(*given: Any, **how: Any) -> Any:
        from transformers import TrainerCallback

        class Stop(TrainerCallback):
            def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                if state.global_step == 3:
                    raise KeyboardInterrupt

        return train(*given, **how, callbacks=[Stop()])

    monkeypatch.setattr(training, "train_ctc", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load_ctc("scratch:spoken-digits", log=lambda line: None)
    assert not scratch.scratch_folder().exists()
    monkeypatch.setattr(training, "train_ctc", train)
    continued = load_ctc("scratch:spoken-digits", log=lambda line: None).model.state_dict()
    assert all(torch.equal(tensor, whole[name]) for name, tensor in continued.items())


def test_without_the_recordings_it_is_told_where_to_get_them(digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for value in (None, str(digits)):
        monkeypatch.delenv("AUDIOLORA_DATA")
        if value:
            monkeypatch.setenv("AUDIOLORA_DATA", value)
        with pytest.raises(DataError, match="(?s)spoken-digits: .*free-spoken-digit-dataset.*set AUDIOLORA_DATA"):
            load_ctc("scratch:spoken-digits", log=lambda line: None)
        monkeypatch.setenv("AUDIOLORA_DATA", "x")


def test_one_process_trains(digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "this_process", lambda: SimpleNamespace(num_processes=2))
    with pytest.raises(ValueError, match="run the same command once without a launcher"):
        load_ctc("scratch:spoken-digits", log=lambda line: None)


def test_the_official_split(digits: Path) -> None:
    found = prompts.load_spoken_digits()
    assert {(one.id.rpartition("_")[2], one.part) for one in found} == {("0", "test"), ("5", "dev"), ("7", "train")}
    (digits / "readme.wav").write_bytes(b"")
    with pytest.raises(DataError, match=r"readme\.wav: not named as the data set's recordings are"):
        prompts.load_spoken_digits()


@pytest.mark.slow
def test_the_real_network_learns(audiolora_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three of the ten digits, two speakers, a few minutes: far better than the empty text."""
    found = prompts.load_spoken_digits()
    few = [one for one in found if one.text in ("zero", "six", "nine") and one.speaker in ("jackson", "theo")]
    monkeypatch.setattr(prompts, "load_spoken_digits", lambda: few)
    settings = replace(scratch.scratch_settings(), epochs=12)
    scratch.train_scratch(tmp_path / "base", settings, log=lambda line: None)
    assert json.loads((tmp_path / "base/scratch.json").read_text())["wer"] < 50
