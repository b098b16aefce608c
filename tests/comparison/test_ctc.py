"""The CTC task: its base, its trainings and its scores are those of the recipe's functions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import jiwer
import pytest
import torch

from audiolora.comparison.ctc import CtcTask, _some
from audiolora.comparison.tasks import PARAMETERS, make_task
from audiolora.comparison.ways import groups_of, prepared, ways_for
from audiolora.speech.ctc.decode import transcribe_ctc
from audiolora.speech.data.manifests import read_utterances
from tests.speech.ctc.tiny_ctc import tiny_ctc, write_clips


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> CtcTask:
    folder = tmp_path_factory.mktemp("ctc")
    loaded = tiny_ctc(folder / "made")
    loaded.model.save_pretrained(folder / "base")
    loaded.processor.save_pretrained(folder / "base")
    manifest = write_clips(folder / "clips", 12)
    return CtcTask(str(folder / "base"), str(manifest), "noise20dB", None, 1, 5, 4, test=3, dev=2)


def test_a_way_is_trained_and_scored(task: CtcTask, tmp_path: Path) -> None:
    task.prepare(tmp_path)
    opened = task.open(tmp_path)
    assert opened.steps == 2 and opened.unit == "WER %" and tuple(opened.head) == ("lm_head",)
    made = prepared(opened.base(), "lora", head=opened.head, parameters=2000, steps=opened.steps, seed=0)
    before = {name: p.detach().clone() for name, p in made.net.named_parameters()}
    loss = opened.loss(made.net)
    loss.backward()
    opened.fit(made.net, 1e-2, 0, tmp_path / "scratch")
    changed = {name for name, p in made.net.named_parameters() if not torch.equal(p, before[name])}
    assert changed and all("lora_" in name for name in changed)
    assert any("feature_extractor" in name for name in changed) and any("q_proj" in name for name in changed)
    heard = opened.parts["test"]
    texts = transcribe_ctc(made.net, opened.loaded.processor, heard.audios(), progress=False)
    wanted = 100 * jiwer.wer([utterance.text for utterance in heard.utterances], texts)
    assert opened.score(made.net, "test").rate == pytest.approx(wanted)
    plain = opened.base()
    assert all(not p.requires_grad for p in plain.parameters())
    assert all(torch.equal(p, q) for p, q in zip(plain.parameters(), opened.base().parameters(), strict=True))


def test_some_of_the_clips_are_of_all_texts(tmp_path: Path) -> None:
    """A split stands in groups of one text; its first clips would teach one word."""
    clips = [replace(u, text=u.text.split()[0]) for u in read_utterances(write_clips(tmp_path, 40, seconds=0.01))]
    grouped = sorted(clips, key=lambda utterance: utterance.text)
    drawn = _some(grouped, 20)
    assert len({utterance.text for utterance in drawn}) > 5 == len({u.text for u in grouped[:20]})
    assert drawn == _some(clips, 20) and set(_some(clips, 0)) == set(clips)


def test_attention_and_feed_forward_layers_are_a_way(task: CtcTask) -> None:
    net = task.network()
    assert groups_of(net) == ("conv", "attention", "ffn") and "lora-attention-ffn" in ways_for(net)
    made = prepared(net, "lora-attention-ffn", head=("lm_head",), parameters=2000, steps=1, seed=0)
    assert set(made.ranks) == {"attention", "ffn"}
    names = {name for name, p in made.net.named_parameters() if p.requires_grad}
    assert any("intermediate_dense" in name for name in names) and not any("conv" in name for name in names)
    wavlm = tiny_ctc(Path(task.model).parent / "wavlm", "WavLMForCTC").model
    assert "lora-attention-ffn" not in ways_for(wavlm)  # no adapter fits its attention


def test_a_task_by_name_takes_what_is_given() -> None:
    ctc = make_task("ctc", data="calls.csv", epochs=2, speech={"channel": "gsm", "model": None}, sensor={})
    assert ctc == CtcTask(data="calls.csv", epochs=2, channel="gsm") and ctc.model == "scratch:spoken-digits"
    assert make_task("speech", speech={}, sensor={}).model == "openai/whisper-tiny.en"
    assert set(PARAMETERS) == {"sensor", "speech", "ctc"}
    with pytest.raises(ValueError, match="channel does nothing for the task sensor"):
        make_task("sensor", speech={"channel": "gsm"}, sensor={})
    with pytest.raises(ValueError, match="task must be one of sensor, speech, ctc, got 'vision'"):
        make_task("vision", speech={}, sensor={})
    assert sum(p.numel() for p in CtcTask().network().parameters()) > 1_000_000  # of the shape, and not yet trained
