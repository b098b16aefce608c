"""The same clips in an update are the same update: over processes, over accumulated steps, or in one batch."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import WhisperForConditionalGeneration, WhisperProcessor

import audiolora
from audiolora.speech.data.manifests import read_utterances
from audiolora.speech.sound.channels import parse_channel
from audiolora.speech.training.clips import Clips
from audiolora.speech.training.settings import TrainingSettings
from audiolora.speech.whisper.collate import WhisperCollator
from audiolora.speech.whisper.context import ContextPolicy, audio_context
from tests.speech.tiny_training import Job, final, train, write_clips
from tests.speech.tiny_whisper import tiny_whisper
from tests.speech.together import run_together, train_as

WHOLE_BATCH = TrainingSettings(epochs=3, batch_size=4, learning_rate=3e-3)
# The largest difference that floats make here was 2e-6 in a loss and 1e-5 in a weight.
LOSS, WEIGHT = 2e-5, 1e-4


@pytest.fixture(scope="module", params=[10, 8], ids=["3 left for the last batch", "1 left for the last batch"])
def alone(request, tmp_path_factory) -> Job:
    """One process, batches of 4; of the clips, whose texts have 1 to 4 words, three are the development part."""
    root = tmp_path_factory.mktemp("batches")
    tiny_whisper(root / "whisper")
    job = Job(
        root / "whisper", of_several_lengths(write_clips(root / "clips", request.param)), root / "alone", WHOLE_BATCH
    )
    train(job)
    return job


def of_several_lengths(manifest: Path) -> Path:
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    for index, row in enumerate(rows):
        row["text"] = " ".join([row["text"].split()[0]] * (1 + index % 4))
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return manifest


def history(folder: Path, name: str) -> list[float]:
    entries = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [entry[name] for entry in entries if name in entry]


def assert_same_training(job: Job, reference: Job) -> None:
    for name in ("loss", "eval_loss", "learning_rate"):
        theirs = history(reference.folder, name)
        assert len(theirs) > 0 and history(job.folder, name) == pytest.approx(theirs, rel=LOSS)
    ours, theirs = final(job.folder), final(reference.folder)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, atol=WEIGHT, rtol=0, msg=name)


def test_accumulated_steps(alone, tmp_path):
    settings = replace(WHOLE_BATCH, batch_size=2, gradient_accumulation=2)
    job = replace(alone, folder=tmp_path / "run", settings=settings)
    train(job)
    assert_same_training(job, alone)


@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_processes(alone, tmp_path, processes):
    job = replace(alone, folder=tmp_path / "run", settings=replace(WHOLE_BATCH, batch_size=4 // processes))
    run_together(processes, job, train_as)
    assert_same_training(job, alone)


@pytest.mark.slow
def test_processes_that_accumulate(alone, tmp_path):
    settings = replace(WHOLE_BATCH, batch_size=1, gradient_accumulation=2)
    job = replace(alone, folder=tmp_path / "run", settings=settings)
    run_together(2, job, train_as)
    assert_same_training(job, alone)


def test_the_losses_are_means_over_tokens(alone, tmp_path):
    """The first logged loss and the first development loss, from the model alone, without a Trainer."""
    settings = replace(WHOLE_BATCH, epochs=1, learning_rate=1e-12, batch_size=2, gradient_accumulation=8)
    job = replace(alone, folder=tmp_path / "run", settings=settings)
    train(job)
    whisper = WhisperForConditionalGeneration.from_pretrained(alone.whisper)
    processor = WhisperProcessor.from_pretrained(alone.whisper)
    torch.manual_seed(0)
    model = audiolora.adapt(whisper, r=2).eval()
    clips = Clips(read_utterances(alone.manifest), parse_channel("noise20dB"))
    start = whisper.config.decoder_start_token_id
    collator = WhisperCollator(processor, ContextPolicy("auto"), start, training=False)
    sums, tokens = [], []
    for index in range(len(clips)):
        batch = collator([clips[index]])
        with torch.no_grad(), audio_context(model, batch["input_features"].shape[-1]):
            tokens.append(batch["labels"].numel())
            sums.append(model(**batch).loss.item() * tokens[-1])
    dev, trained = sum(sums[:3]) / sum(tokens[:3]), sum(sums[3:]) / sum(tokens[3:])
    assert len({*tokens}) > 2
    assert history(job.folder, "eval_loss") == pytest.approx([dev], rel=LOSS)
    assert history(job.folder, "loss") == pytest.approx([trained], rel=LOSS)
