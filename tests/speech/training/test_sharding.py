"""FSDP over two CPU processes: the same training, checkpoints and best adapter as one process with a whole model."""

from __future__ import annotations

import signal
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

import audiolora
from audiolora.files import WHOLE
from audiolora.speech.training.settings import TrainingSettings
from audiolora.speech.training.sharding import whole_afterwards
from tests.speech.tiny_training import Job, final, train, write_clips
from tests.speech.tiny_whisper import tiny_whisper
from tests.speech.together import run_together, train_sharded
from tests.speech.training.test_global_batch import assert_same_training, history

SETTINGS = TrainingSettings(epochs=3, batch_size=4, learning_rate=3e-3)


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Job:
    """One process, the whole model, batches of 4."""
    root = tmp_path_factory.mktemp("sharding")
    tiny_whisper(root / "whisper", layers=2)
    job = Job(root / "whisper", write_clips(root / "clips", 10), root / "alone", SETTINGS)
    train(job)
    return job


def halved(job: Job) -> TrainingSettings:
    return replace(job.settings, batch_size=job.settings.batch_size // 2)


def test_a_sharded_training_is_the_same(alone, tmp_path):
    job = replace(alone, folder=tmp_path / "run", settings=halved(alone))
    assert run_together(2, job, train_sharded) == [0, 0]
    assert_same_training(job, alone)
    assert {type(tensor) for tensor in final(job.folder).values()} == {torch.Tensor}  # whole again, no longer sharded
    saved = load_file(job.folder / "checkpoint-6" / "adapter_model.safetensors")
    reference = load_file(alone.folder / "checkpoint-6" / "adapter_model.safetensors")
    assert saved.keys() == reference.keys()
    for name, tensor in reference.items():
        torch.testing.assert_close(saved[name], tensor, atol=1e-4, rtol=0, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("change", [{"method": "dora"}, {"gradient_checkpointing": True}, {"gradient_accumulation": 2}])
def test_with_what_else_there_is(alone, tmp_path, change):
    method = change.pop("method", "lora")
    settings = replace(SETTINGS, **change)
    reference = replace(alone, folder=tmp_path / "reference", method=method, settings=settings)
    train(reference)
    job = replace(reference, folder=tmp_path / "run", settings=halved(reference))
    assert run_together(2, job, train_sharded) == [0, 0]
    assert_same_training(job, reference)


@pytest.mark.slow
@pytest.mark.parametrize(("moment", "at_step"), [("mid-epoch", 5), ("before the mark", 4), ("before the best", 6)])
def test_a_killed_sharded_training_resumes(alone, tmp_path, moment, at_step):
    """To the same weights bit by bit."""
    reference = replace(alone, folder=tmp_path / "reference", settings=halved(alone))
    assert run_together(2, reference, train_sharded) == [0, 0]
    job = replace(reference, folder=tmp_path / "run")
    codes = run_together(2, replace(job, dies=moment, at_step=at_step), train_sharded)
    assert -signal.SIGKILL in codes and 0 not in codes
    assert run_together(2, job, train_sharded) == [0, 0]
    ours, theirs = final(job.folder), final(reference.folder)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert (job.folder / "metrics.jsonl").read_bytes() == (reference.folder / "metrics.jsonl").read_bytes()
    assert all((path / WHOLE).exists() for path in job.folder.glob("checkpoint-*"))


@pytest.mark.slow
def test_the_best_epoch_is_taken(alone, tmp_path):
    """The development loss rises again, and the adapter is the one from before that."""
    settings = TrainingSettings(epochs=8, batch_size=2, learning_rate=0.1, patience=2)
    job = replace(alone, folder=tmp_path / "run", settings=settings, dev_text="qyqkj bqjzk qqpyj")
    assert run_together(2, job, train_sharded) == [0, 0]
    losses = history(job.folder, "eval_loss")
    best = losses.index(min(losses)) + 1
    assert best < len(losses)
    saved = load_file(job.folder / f"checkpoint-{2 * best}" / "adapter_model.safetensors")
    ours = {name.replace(".default", ""): tensor for name, tensor in final(job.folder).items()}
    assert ours.keys() == saved.keys() and all(torch.equal(ours[name], saved[name]) for name in saved)


@pytest.mark.slow
def test_version_1_ends_before_the_first_step(alone, tmp_path):
    job = replace(alone, folder=tmp_path / "run", settings=halved(alone))
    assert run_together(2, job, partial(train_sharded, version=1)) == [1, 1]
    assert not (job.folder / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("version", "model", "message"),
    [
        (
            1,
            lambda: torch.nn.Linear(2, 2),
            "FSDP version 1 .*accelerate launch --use_fsdp --fsdp_version 2",
        ),
        (2, lambda: torch.nn.Linear(2, 2), "only adapters are trained over a sharded model"),
        (
            2,
            lambda: audiolora.adapt(audiolora.quantize(torch.nn.Sequential(torch.nn.Conv1d(2, 2, 1))), r=1),
            "8 or 4 bits is not sharded",
        ),
    ],
)
def test_what_is_not_sharded(version, model, message):
    plugin = SimpleNamespace(fsdp_version=version)
    trainer = SimpleNamespace(
        is_fsdp_enabled=True, accelerator=SimpleNamespace(state=SimpleNamespace(fsdp_plugin=plugin))
    )
    with pytest.raises(ValueError, match=message), whole_afterwards(model(), trainer):
        pass
