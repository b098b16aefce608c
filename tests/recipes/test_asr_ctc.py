"""The CTC recipe from end to end on generated clips and a tiny random wav2vec2."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jiwer
import pytest
import torch
from safetensors.torch import load_file

from audiolora.speech.ctc.adapter import load_adapted_ctc
from audiolora.speech.ctc.decode import transcribe_ctc
from audiolora.speech.ctc.settings import CtcTrainingSettings
from audiolora.speech.ctc.training import CtcTrainer
from audiolora.speech.data.manifests import DataError, read_utterances
from audiolora.speech.data.split import load_split
from audiolora.speech.sound.channels import parse_channel
from audiolora.speech.training.clips import Clips
from tests.speech.ctc.tiny_ctc import tiny_ctc, write_clips

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "asr_ctc.py"
TRAINING = CtcTrainingSettings(epochs=2, batch_size=4, learning_rate=1e-2)
ARGUMENTS: dict[str, Any] = {"channel": "noise20dB", "name": "tiny", "r_conv": 2, "r_attention": 2, "test": 3, "dev": 2}


@pytest.fixture(scope="module")
def recipe() -> Callable[..., None]:
    spec = importlib.util.spec_from_file_location("asr_ctc", RECIPE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`base/` and `clips/`, a manifest of twelve clips; not to be changed."""
    folder = tmp_path_factory.mktemp("recipe")
    loaded = tiny_ctc(folder / "made")
    loaded.model.save_pretrained(folder / "base")
    loaded.processor.save_pretrained(folder / "base")
    write_clips(folder / "clips", 12)
    return folder


@pytest.fixture(scope="module")
def call(recipe: Callable[..., None], root: Path) -> Callable[..., Path]:
    def run(out: Path, training: CtcTrainingSettings = TRAINING, **changes: Any) -> Path:
        given = {"model": str(root / "base"), "data": str(root / "clips" / "clips.jsonl"), **ARGUMENTS, **changes}
        recipe(training=training, out=out, **given)
        return out / given["name"]

    return run


@pytest.fixture(scope="module")
def finished(call: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; not to be changed."""
    return call(tmp_path_factory.mktemp("runs"))


def summary(run: Path) -> dict[str, Any]:
    figures: dict[str, Any] = json.loads((run / "summary.json").read_text())
    return figures


def test_the_figures_are_those_of_the_texts(finished: Path, root: Path) -> None:
    """Word error rates from jiwer alone, of the adapter loaded again."""
    figures = summary(finished)
    split = load_split(finished / "split.json", read_utterances(root / "clips" / "clips.jsonl"))
    assert [len(part) for part in (split.train, split.dev, split.test)] == [7, 2, 3]
    adapted, ctc, info = load_adapted_ctc(finished, log=lambda *_: None)
    heard = Clips(split.test, parse_channel("noise20dB"))
    after = transcribe_ctc(adapted, ctc.processor, heard.audios(), progress=False)
    before = json.loads((finished / "before.json").read_text())
    with adapted.disable_adapter():
        assert transcribe_ctc(adapted, ctc.processor, heard.audios(), progress=False) == before != after
    for when, texts in (("before", before), ("after", after)):
        assert figures[f"wer_{when}"]["value"] == pytest.approx(100 * jiwer.wer([u.text for u in split.test], texts))
        assert figures[f"cer_{when}"]["value"] == pytest.approx(100 * jiwer.cer([u.text for u in split.test], texts))
    assert figures["adapter"]["task"] == info.task == "ctc" and not info.new_head
    weights = load_file(finished / "adapter" / "adapter_model.safetensors")
    assert figures["parameters"]["trained"] == sum(tensor.numel() for tensor in weights.values())
    assert any("feature_extractor" in name for name in weights) and any("q_proj" in name for name in weights)
    assert all(tensor.abs().sum() > 0 for name, tensor in weights.items() if "lora_B" in name)


def test_what_a_run_leaves(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    assert {"adapter", "settings.json", "split.json", "before.json", "metrics.jsonl", "report.html"} < names
    page = (finished / "report.html").read_text()
    assert not re.search(r'(src|href)="https?://', page) and "load_adapted_ctc" in page and "30 s" not in page
    card = (finished / "adapter" / "README.md").read_text()
    assert "tags: [audiolora, lora, ctc]" in card and f"{summary(finished)['wer_after']['value']:.1f}" in card
    assert "language:" not in card  # nobody said which


def test_a_second_call_shows_the_run(finished: Path, call: Callable[..., Path], capsys: Any) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    assert call(finished.parent) == finished
    assert f"{summary(finished)['wer_after']['value']:.1f}" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before
    with pytest.raises(ValueError, match=r"mask_time_prob was None, now 0.1.*--fresh"):
        call(finished.parent, replace(TRAINING, spec_augment=True, mask_time_prob=0.1))
    with pytest.raises(ValueError, match=r"text_column was 'text', now 'said'.*--fresh"):
        call(finished.parent, text_column="said")


@pytest.mark.slow
def test_an_interrupted_run_continues_to_the_same(
    finished: Path, call: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = CtcTrainer.training_step

    def interrupted(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == 3:  # of two an epoch
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(CtcTrainer, "training_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            call(tmp_path)
    assert not (tmp_path / "tiny" / "summary.json").exists() and not (tmp_path / "tiny" / "adapter").exists()
    again = call(tmp_path)
    ours, theirs = (load_file(run / "adapter" / "adapter_model.safetensors") for run in (again, finished))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert summary(again)["after"] == summary(finished)["after"]


@pytest.mark.slow
def test_a_new_alphabet_and_a_frozen_feature_encoder(call: Callable[..., Path], tmp_path: Path) -> None:
    run = call(
        tmp_path, replace(TRAINING, epochs=1), vocabulary="new", freeze="features", language="en", channel="clean"
    )
    weights = load_file(run / "adapter" / "adapter_model.safetensors")
    assert not any("feature_extractor" in name for name in weights)
    assert any("pos_conv_embed" in name for name in weights)
    (head,) = [tensor for name, tensor in weights.items() if name.endswith("lm_head.weight")]
    info = summary(run)["adapter"]
    assert info["new_head"] and len(head) == len(info["vocabulary"]) and "f" in info["vocabulary"]
    assert "z" not in info["vocabulary"]  # no text has one
    assert "new, for another alphabet" in (run / "report.html").read_text()
    assert "language: en" in (run / "adapter" / "README.md").read_text()


@pytest.mark.slow
def test_faults_are_told_before_any_training(call: Callable[..., Path], root: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (root / "clips" / "clips.jsonl").read_text().splitlines()]
    for row in rows:
        row["audio"] = str(root / "clips" / row["audio"])
    rows[3]["text"], rows[5]["text"] = "press 3", "m" * 60
    manifest = tmp_path / "bad.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=r"row 4.*'3' not in the model's vocabulary"):
        call(tmp_path, data=str(manifest))
    run = call(tmp_path, replace(TRAINING, epochs=1), data=str(manifest), skip_bad=True)
    kept = json.loads((run / "split.json").read_text())
    assert sorted(id for part in kept.values() for id in part) == sorted(
        f"clip{i}" for i in range(12) if i not in (3, 5)
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"r_conv": 0, "r_attention": 0}, "every rank is 0"),
        ({"r_conv": 0, "freeze": "features"}, "does nothing where no convolution is adapted"),
        ({"r_conv": -1}, "r must be a positive integer, got -1"),
        ({"model": "no/such-model"}, "not in the local Hugging Face cache"),
        ({"channel": "telepathy"}, "telepathy"),
    ],
)
def test_what_cannot_be_done_is_told(call: Callable[..., Path], tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(tmp_path, **changes)
    left = {path.name for path in (tmp_path / "tiny").iterdir()} if (tmp_path / "tiny").exists() else set()
    assert left <= {"settings.json", "bad_rows.tsv"}


@pytest.mark.slow
def test_the_command_line(finished: Path, root: Path, tmp_path: Path) -> None:
    """The same from a shell: the same weights."""
    options = ["--channel", "noise20dB", "--name", "tiny", "--r-conv", "2", "--r-attention", "2", "--test", "3"]
    options += ["--dev", "2", "--epochs", "2", "--batch-size", "4", "--learning-rate", "1e-2", "--out", str(tmp_path)]
    data = root / "clips" / "clips.jsonl"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [sys.executable, RECIPE, "--model", root / "base", "--data", data, *options], env=environment, check=True
    )
    files = [run / "adapter" / "adapter_model.safetensors" for run in (finished, tmp_path / "tiny")]
    ours, theirs = map(load_file, files)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    wrong = subprocess.run(
        [sys.executable, RECIPE, "--context", "full"], env=environment, check=False, capture_output=True, text=True
    )
    assert wrong.returncode != 0 and "context" in wrong.stdout + wrong.stderr
