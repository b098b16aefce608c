"""Training: exact resume after every kind of interruption, the loss, the order of the clips, and the arguments."""

from __future__ import annotations

import json
import multiprocessing
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from audiolora.checkpoints import last_whole_checkpoint
from audiolora.run import WHOLE
from audiolora.speech.data.manifests import read_utterances
from audiolora.speech.training.settings import TrainingSettings
from audiolora.speech.whisper.training import WhisperTrainer
from tests.speech.tiny_training import MOMENTS, Job, final, fit, train, write_clips
from tests.speech.tiny_whisper import tiny_whisper

train_ = WhisperTrainer.train

Spawn = Callable[[Job], int]

STEPS = 3  # an epoch: of 10 clips 7 are trained on, 3 a step
MIXED = TrainingSettings(
    epochs=2, batch_size=3, context="mix", learning_rate=3e-2, spec_augment=True, augment="noise5-20dB,gain,mulaw@0.3"
)
STOPPING = TrainingSettings(epochs=8, batch_size=3, learning_rate=0.1, patience=2)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> Job:
    """Dropout, masks, effects on the clips and a mix of contexts: what draws at random while training."""
    root = tmp_path_factory.mktemp("training")
    tiny_whisper(root / "whisper")
    return Job(root / "whisper", write_clips(root / "clips", 10), root / "mixed", MIXED, dropout=0.1)


@pytest.fixture(scope="module")
def stopping(mixed) -> Job:
    """A training whose development loss rises after its second epoch, so that it stops after the fourth."""
    folder = mixed.folder.with_name("stopping")
    return replace(mixed, folder=folder, settings=STOPPING, dropout=0.0, dev_text="qyqkj bqjzk qqpyj")


@pytest.fixture(scope="module")
def spawn() -> Spawn:
    """Run a job in a process of its own and return its exit code; the imports are paid for once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.speech.tiny_training"])

    def run(job: Job) -> int:
        process = context.Process(target=train, args=(job,))
        process.start()
        process.join()
        return process.exitcode

    return run


@pytest.fixture(scope="module")
def uninterrupted(mixed, spawn) -> Job:
    assert spawn(mixed) == 0
    return mixed


@pytest.fixture(scope="module")
def stopped(stopping, spawn) -> Job:
    assert spawn(stopping) == 0
    return stopping


def dev_losses(folder: Path) -> list[float]:
    history = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [entry["eval_loss"] for entry in history if "eval_loss" in entry]


def assert_same_end(job: Job, reference: Job) -> None:
    """Bit-equal weights, the same metrics.jsonl byte by byte, and nothing but whole checkpoints left."""
    ours, theirs = final(job.folder), final(reference.folder)
    assert ours.keys() == theirs.keys() and len(ours) > 0
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name
    assert (job.folder / "metrics.jsonl").read_bytes() == (reference.folder / "metrics.jsonl").read_bytes()
    names = [sorted(path.name for path in j.folder.glob("checkpoint-*")) for j in (job, reference)]
    assert names[0] == names[1]
    assert all((path / WHOLE).exists() for path in job.folder.glob("checkpoint-*"))


def begun_at(job: Job) -> list[int]:
    return [int(line) for line in (job.folder / "began.txt").read_text().split()]


@pytest.mark.parametrize(
    ("moment", "at_step", "continues_at"),
    [
        pytest.param("mid-epoch", 2, 0, marks=pytest.mark.slow),  # before there is any checkpoint
        ("mid-epoch", 5, 3),
        pytest.param("adapter", 6, 3, marks=pytest.mark.slow),
        ("optimizer", 6, 3),
        ("before the mark", 6, 3),
        pytest.param("after the mark", 3, 3, marks=pytest.mark.slow),
        ("deleting", 6, 6),
        pytest.param("before the best", 6, 6, marks=pytest.mark.slow),
    ],
)
def test_a_killed_training_resumes_to_the_same_weights(uninterrupted, spawn, tmp_path, moment, at_step, continues_at):
    job = replace(uninterrupted, folder=tmp_path / "run")
    assert spawn(replace(job, dies=moment, at_step=at_step)) == -signal.SIGKILL
    assert not (job.folder / "final.pt").exists()
    assert spawn(job) == 0
    assert begun_at(job) == [0, continues_at]
    assert_same_end(job, uninterrupted)


@pytest.mark.parametrize("moment", ["full disk", pytest.param("interrupt", marks=pytest.mark.slow)])
def test_a_full_disk_or_ctrl_c_loses_nothing(uninterrupted, spawn, tmp_path, moment):
    job = replace(uninterrupted, folder=tmp_path / "run")
    assert spawn(replace(job, dies=moment, at_step=6)) == 1
    assert (job.folder / "checkpoint-3" / WHOLE).exists() and not (job.folder / "checkpoint-6" / WHOLE).exists()
    assert spawn(job) == 0
    assert begun_at(job) == [0, 3]
    assert_same_end(job, uninterrupted)


def test_a_full_disk_is_named(mixed, tmp_path, monkeypatch):
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match=r"run: checkpoint-3 could not be written .*No space left.*disk full"):
        train(replace(mixed, folder=tmp_path / "run"))
    assert last_whole_checkpoint(tmp_path / "run") is None


def test_training_stops_when_patience_ends_and_keeps_the_best_epoch(stopped):
    """Two epochs after the best, of 8 asked for; the adapter is the one that was saved after the best."""
    losses = dev_losses(stopped.folder)
    assert losses.index(min(losses)) == len(losses) - 3 and len(losses) < STOPPING.epochs
    saved = load_file(stopped.folder / f"checkpoint-{best_step(stopped)}" / "adapter_model.safetensors")
    ours = {name.replace(".default", ""): tensor for name, tensor in final(stopped.folder).items()}
    assert ours.keys() == saved.keys()
    assert all(torch.equal(ours[name], saved[name]) for name in saved)


def best_step(job: Job) -> int:
    losses = dev_losses(job.folder)
    return STEPS * (losses.index(min(losses)) + 1)


@pytest.mark.parametrize(
    ("moment", "epochs_after_best", "continues_after"), [("before the mark", 2, 1), ("before the best", 0, 2)]
)
def test_early_stopping_survives_a_kill(stopped, spawn, tmp_path, moment, epochs_after_best, continues_after):
    """Killed with one epoch of patience spent, and after training was stopped but before the best was taken."""
    job, best = replace(stopped, folder=tmp_path / "run"), best_step(stopped)
    assert spawn(replace(job, dies=moment, at_step=best + STEPS * epochs_after_best)) == -signal.SIGKILL
    assert spawn(job) == 0
    assert begun_at(job) == [0, best + STEPS * continues_after]
    assert_same_end(job, stopped)


def test_a_run_may_be_moved_before_it_is_resumed(stopped, spawn, tmp_path):
    job, at_step = replace(stopped, folder=tmp_path / "run"), best_step(stopped) + STEPS
    assert spawn(replace(job, dies="after the mark", at_step=at_step)) == -signal.SIGKILL
    moved = replace(job, folder=job.folder.rename(tmp_path / "moved"))
    assert spawn(moved) == 0
    assert_same_end(moved, stopped)


def test_unmarked_checkpoints_are_removed_and_the_newest_marked_one_is_taken(tmp_path):
    for step in (3, 12, 9, 15):
        (tmp_path / f"checkpoint-{step}").mkdir()
    for step in (3, 12, 9):
        (tmp_path / f"checkpoint-{step}" / WHOLE).touch()
    assert last_whole_checkpoint(tmp_path) == tmp_path / "checkpoint-12"
    assert not (tmp_path / "checkpoint-15").exists()
    assert last_whole_checkpoint(tmp_path / "not there") is None


def test_accumulated_gradients_are_those_of_the_whole_batch(mixed, tmp_path):
    """Two batches of four against four of two, texts of one length: Whisper's loss is a mean over its batch."""
    ends = []
    for batch_size, steps in ((4, 1), (2, 2)):
        settings = TrainingSettings(epochs=1, batch_size=batch_size, gradient_accumulation=steps, learning_rate=3e-3)
        job = replace(mixed, folder=tmp_path / str(steps), settings=settings, dropout=0.0)
        clips = [replace(clip, text=f"word {index}") for index, clip in enumerate(read_utterances(job.manifest))]
        ends.append((fit(job, clips[:8], clips[8:]), final(job.folder)))
    (history, weights), (accumulated, their_weights) = ends
    assert accumulated[-1]["train_loss"] == pytest.approx(history[-1]["train_loss"], rel=1e-5)
    for name, tensor in weights.items():
        torch.testing.assert_close(their_weights[name], tensor, atol=1e-5, rtol=1e-4)


def test_a_loss_that_is_never_finite_is_an_error(mixed, tmp_path):
    job = replace(mixed, folder=tmp_path / "run", settings=replace(MIXED, epochs=1, learning_rate=1e38), dropout=0.0)
    with pytest.raises(ValueError, match=r"development loss was not finite.*learning_rate 1e\+38"):
        train(job)


def test_masks_change_the_training_and_not_the_model(mixed, tmp_path, monkeypatch):
    """SpecAugment is on while training alone: the model's settings are the user's again afterwards."""
    clips = read_utterances(mixed.manifest)
    settings = TrainingSettings(epochs=1, batch_size=3)
    plain = fit(replace(mixed, folder=tmp_path / "plain", settings=settings, dropout=0.0), clips[3:], clips[:3])
    trained = []
    monkeypatch.setattr(WhisperTrainer, "train", lambda self, **kwargs: trained.append(self) or train_(self, **kwargs))
    masked = replace(mixed, folder=tmp_path / "masked", settings=replace(settings, spec_augment=True), dropout=0.0)
    assert fit(masked, clips[3:], clips[:3])[-1]["train_loss"] != plain[-1]["train_loss"]
    config = trained[0].model.get_base_model().config
    assert (config.apply_spec_augment, config.mask_feature_prob) == (False, 0.0)


def test_every_moment_is_tried():
    tried = {"mid-epoch", "adapter", "optimizer", "before the mark", "after the mark", "deleting", "before the best"}
    assert tried | {"full disk", "interrupt"} == MOMENTS.keys()
