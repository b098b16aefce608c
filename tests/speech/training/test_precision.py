"""bfloat16, gradient checkpointing, and what a device does not have."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import Seq2SeqTrainingArguments, TrainerCallback

from audiolora.speech.training.precision import mixed_precision
from audiolora.speech.training.settings import TrainingSettings
from audiolora.speech.training.trainer import trainer_arguments
from audiolora.speech.whisper import training
from tests.speech.tiny_training import Job, final, train, write_clips
from tests.speech.tiny_whisper import tiny_whisper

SETTINGS = TrainingSettings(epochs=2, batch_size=4, learning_rate=3e-3)


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Job:
    """Float32, with dropout, whose masks the second forward of a checkpointed layer must draw again."""
    root = tmp_path_factory.mktemp("precision")
    tiny_whisper(root / "whisper", layers=2)
    job = Job(root / "whisper", write_clips(root / "clips", 10), root / "plain", SETTINGS, dropout=0.1)
    train(job)
    return job


def losses(folder: Path) -> list[float]:
    entries = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [value for entry in entries for name, value in entry.items() if name in ("loss", "eval_loss")]


@pytest.fixture
def trained(monkeypatch) -> list[torch.nn.Module]:
    """The models of the trainings that follow, and their gradients at the end of each step."""
    models = []

    class Watch(TrainerCallback):
        def on_train_begin(self, args, state, control, model=None, **kwargs):
            models.append(model)

    callbacks = training.trainer_callbacks
    monkeypatch.setattr(training, "trainer_callbacks", lambda *args: [*callbacks(*args), Watch()])
    return models


@pytest.mark.parametrize("method", ["lora", pytest.param("dora", marks=pytest.mark.slow)])
def test_gradient_checkpointing_changes_nothing(plain, tmp_path, trained, method):
    """The same losses and weights, though each layer is computed again in the backward."""
    reference = plain
    if method != "lora":
        reference = replace(plain, folder=tmp_path / "reference", method=method, dropout=0.0)
        train(reference)
    settings = replace(SETTINGS, gradient_checkpointing=True)
    job = replace(reference, folder=tmp_path / "run", settings=settings)
    train(job)
    layers = [module for module in trained[-1].modules() if getattr(module, "gradient_checkpointing", False)]
    assert len(layers) >= 4
    assert losses(job.folder) == losses(reference.folder)
    ours, theirs = final(job.folder), final(reference.folder)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_bfloat16_trains_to_nearly_the_same(plain, tmp_path, trained):
    """Adapters and base stay float32; the losses differ, by less than a thousandth."""
    job = replace(plain, folder=tmp_path / "run", settings=replace(SETTINGS, precision="bf16"))
    train(job)
    assert {parameter.dtype for parameter in trained[0].parameters()} == {torch.float32}
    assert all(tensor.dtype == torch.float32 for tensor in final(job.folder).values())
    assert losses(job.folder) != losses(plain.folder)
    assert losses(job.folder) == pytest.approx(losses(plain.folder), rel=1e-3)


def test_fp32_is_what_auto_is_on_a_cpu(plain, tmp_path):
    if torch.accelerator.is_available():
        pytest.skip("a device with other numbers is here")
    job = replace(plain, folder=tmp_path / "run", settings=replace(SETTINGS, precision="fp32"))
    train(job)
    assert losses(job.folder) == losses(plain.folder)


@pytest.mark.parametrize(
    ("precision", "device", "cuda_has_bf16", "expected"),
    [
        ("auto", "cpu", False, None),
        ("auto", "mps", False, None),
        ("auto", "cuda", True, "bf16"),
        ("auto", "cuda", False, "fp16"),
        ("fp32", "cuda", True, None),
        ("bf16", "cpu", False, "bf16"),
        ("bf16", "cuda", True, "bf16"),
        ("fp16", "cuda", False, "fp16"),
    ],
)
def test_what_a_device_computes_in(monkeypatch, precision, device, cuda_has_bf16, expected):
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **kwargs: cuda_has_bf16)
    assert mixed_precision(precision, device) == {"bf16": expected == "bf16", "fp16": expected == "fp16"}


@pytest.mark.parametrize(
    ("precision", "device", "message"),
    [
        ("fp16", "cpu", "precision fp16 needs a CUDA GPU.*the device is cpu; take bf16, or fp32"),
        ("fp16", "mps", "the device is mps"),
        ("bf16", "cuda", "precision bf16: this cuda device computes no bfloat16; take fp32, or auto"),
        ("bf16", "mps", "this mps device computes no bfloat16"),
    ],
)
def test_what_it_does_not(monkeypatch, precision, device, message):
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **kwargs: False)
    with pytest.raises(ValueError, match=message):
        mixed_precision(precision, device)


def test_a_launcher_that_names_a_precision(monkeypatch):
    """accelerate launch --mixed_precision is heeded, and a contradiction told."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert mixed_precision("auto", "cpu") == mixed_precision("bf16", "cpu") == {"bf16": True, "fp16": False}
    with pytest.raises(ValueError, match="precision fp32 and accelerate's mixed_precision bf16 contradict"):
        mixed_precision("fp32", "cpu")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp8")
    with pytest.raises(ValueError, match="mixed_precision fp8 is none of"):
        mixed_precision("auto", "cuda")


def test_sharding_over_cpus_is_refused(monkeypatch, tmp_path):
    """accelerate ignores --use_fsdp on CPUs: each process would hold the whole model, and nobody would know."""
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    with pytest.raises(ValueError, match="shards a model .* over GPUs alone"):
        trainer_arguments(Seq2SeqTrainingArguments, SETTINGS, 1, tmp_path)
