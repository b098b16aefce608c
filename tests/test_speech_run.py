"""What a run writes down: figures that are those of its texts, in an order that makes half a run look like one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile

from audiolora.inspection import Inspection
from audiolora.report import speech_run
from audiolora.report.speech_run import Outcome
from audiolora.run import Run, open_run
from audiolora.speech.data.manifests import Utterance
from audiolora.speech.data.prompts import BUILTIN
from audiolora.speech.data.split import Split
from audiolora.speech.sound.channels import parse_channel
from audiolora.speech.texts.normalizing import Normalizer
from audiolora.speech.texts.results import read_texts
from audiolora.speech.training.clips import Clips
from audiolora.speech.whisper.adapter import AdapterInfo

REFERENCES = ["press one now", "goodbye"]
SETTINGS = {"model": "tiny", "data": "calls.csv", "channel": "invert", "r": {"conv": 4}, "epochs": 2}


def outcome(tmp_path: Path, *, channel: str = "invert", data: str = "calls.csv", **changes: Any) -> Outcome:
    tmp_path.mkdir(exist_ok=True)
    utterances = []
    for index, text in enumerate(REFERENCES):
        path = tmp_path / f"{index}.wav"
        soundfile.write(path, 0.1 * np.sin(np.arange(4000) * (index + 1) / 5), 16_000)
        utterances.append(Utterance(f"clip{index}", path, text, f"row {index}"))
    run = open_run(tmp_path / "runs" / "demo", {**SETTINGS, "data": data, "channel": channel})
    (run.training).mkdir()
    (run.training / "metrics.jsonl").write_text('{"loss": 2.0, "step": 5}\n')
    run.adapter.mkdir()
    (run.adapter / "adapter_model.safetensors").write_bytes(bytes(1234))
    given: dict[str, Any] = {
        "run": run,
        "base": SimpleNamespace(name="tiny", origin="the local directory tiny"),
        "info": AdapterInfo("tiny", "abc", "auto", None),
        "split": Split(train=(), dev=(), test=tuple(utterances)),
        "heard": Clips(utterances, parse_channel(channel)),
        "normalize": Normalizer("basic"),
        "before": ["press two", "good bye"],
        "after": ["Press one now", "good"],
        "history": [{"loss": 2.0, "step": 5}, {"eval_loss": 1.5, "step": 6}],
        "seconds": {"zero_shot": 1.0, "training": 60.0, "adapted": 2.0},
    }
    return Outcome(**{**given, **changes})


INSPECTION = Inspection((), 10, 1000)


def test_the_figures_counted_by_hand(tmp_path):
    """Before: one substitution, one deletion; one substitution, one insertion; of 4 words. After: one substitution."""
    made = outcome(tmp_path)
    speech_run.leave(made, INSPECTION)
    summary = json.loads((made.run.folder / "summary.json").read_text())
    assert summary["wer_before"]["value"] == 100.0 and summary["wer_after"]["value"] == 25.0
    assert set(summary["wer_after"]) == {"value", "low", "high"} == set(summary["cer_before"])
    assert summary["wer_relative_reduction"] == 75.0
    counts = [summary["before"][name] for name in ("substitutions", "insertions", "deletions", "hits")]
    assert counts == [2, 1, 1, 1] and summary["before"]["reference_words"] == 4
    assert summary["parameters"] == {"trained": 10, "total": 1000} and summary["adapter_bytes"] == 1234
    assert summary["seconds"] == {"zero_shot": 1.0, "training": 60.0, "adapted": 2.0}
    assert summary["settings"] == dict(made.run.settings)
    assert (made.run.folder / "metrics.jsonl").read_text() == '{"loss": 2.0, "step": 5}\n'


def test_the_texts_are_kept(tmp_path):
    made = outcome(tmp_path)
    speech_run.leave(made, INSPECTION)
    before, after = read_texts(made.run.folder)
    assert {name: text.text for name, text in before.texts.items()} == {"clip0": "press two", "clip1": "good bye"}
    assert {name: text.text for name, text in after.texts.items()} == {"clip0": "Press one now", "clip1": "good"}
    assert [text.reference for text in after.texts.values()] == REFERENCES
    assert after.texts["clip0"].compared == ("press one now", "press one now")
    assert after.normalize == {"rules": "basic", "language": None, "spellings": 0}


def test_the_summary_is_written_last(tmp_path, monkeypatch):
    made, there = outcome(tmp_path), []
    write = Run.write
    monkeypatch.setattr(
        Run,
        "write",
        lambda run, name, value: (there.extend(p.name for p in run.folder.iterdir()), write(run, name, value)),
    )
    speech_run.leave(made, INSPECTION)
    assert {"report.html", "metrics.jsonl", "texts.jsonl", "adapter", "settings.json"} <= set(
        there
    ) and "summary.json" not in there


def test_what_was_left_is_shown(tmp_path, capsys):
    made = outcome(tmp_path)
    speech_run.leave(made, INSPECTION)
    speech_run.show(made.run)
    shown = " ".join(capsys.readouterr().out.split())
    for words in ("100.0", "25.0", "zero-shot", "adapted", "report.html", "audiolora transcribe"):
        assert words in shown


def test_a_base_that_makes_no_errors_has_no_relative_reduction(tmp_path, capsys):
    made = outcome(tmp_path, before=REFERENCES)
    speech_run.leave(made, INSPECTION)
    assert json.loads((made.run.folder / "summary.json").read_text())["wer_relative_reduction"] is None
    speech_run.show(made.run)
    assert "25.0" in capsys.readouterr().out


@pytest.mark.parametrize("channel", ["clean", "invert"])
def test_a_channel_is_said_to_be_what_it_is(tmp_path, channel):
    made = outcome(tmp_path, channel=channel)
    speech_run.leave(made, INSPECTION)
    for text in (speech_run.card(made), (made.run.folder / "report.html").read_text()):
        assert ("simulated" in text.lower()) == (channel == "invert")


def test_what_training_clips_were_put_through_is_listed(tmp_path):
    asked = {"augment": "noise5-20dB@0.3,gsm|opus12kbps", "noise_folder": "our/yard", "spec_augment": True}
    run = open_run(tmp_path / "augmented", {**SETTINGS, **asked})
    made = outcome(tmp_path / "with", run=run)
    (run.training).mkdir()
    (run.training / "metrics.jsonl").write_text("")
    run.adapter.mkdir()
    (run.adapter / "adapter_model.safetensors").write_bytes(b"")
    speech_run.leave(made, INSPECTION)
    for text in (speech_run.card(made), (run.folder / "report.html").read_text()):
        assert "recorded noise at 5 to 20 dB SNR: 30 % of the clips" in text and "noise from our/yard" in text
        assert "or Opus at 12 kbit/s: 50 % of the clips" in text and "SpecAugment" in text
    assert "augmented" not in speech_run.card(outcome(tmp_path / "without"))


def test_a_built_in_set_is_attributed(tmp_path):
    text = speech_run.card(outcome(tmp_path, data="prompts-en"))
    assert BUILTIN["prompts-en"].licence in text and BUILTIN["prompts-en"].attribution in text
    assert "Speech:" not in speech_run.card(outcome(tmp_path / "own"))


@pytest.mark.parametrize("given", [False, True])
def test_what_training_and_test_share_is_said(tmp_path, given):
    """Drawn parts share no sentence; those that the data bring may, and speakers with it."""
    made = outcome(tmp_path)
    (one, two) = (replace(u, speaker="anna" if given else None) for u in made.split.test)
    said = replace(two, id="other", text=one.text if given else "something else")
    text = speech_run.card(replace(made, split=Split(train=(said,), dev=(), test=(one,))))
    assert ("No test sentence occurs in the training part." in text) is not given
    assert ("Train and test share 1 sentence (1 of 1 utterances of test)" in text) is given
    assert ("Train and test share 1 speaker (" in text) is given and ("may be the same" in text) is not given
