"""kill -9 at any moment, within an epoch too, with any number of workers and processes: the same end, bit by bit."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from audiolora.checkpoints import WholeCheckpoints, check_processes
from audiolora.files import WHOLE
from audiolora.speech.training.settings import TrainingSettings
from tests.speech.tiny_training import Job, train, write_clips
from tests.speech.tiny_whisper import tiny_whisper
from tests.speech.together import run_together, train_as
from tests.speech.whisper.test_training import assert_same_end, begun_at

# 11 clips to train on, 2 a step: 6 steps an epoch, saved after the 4th too.
AUGMENT = "noise5-20dB,gain,mulaw@0.3"
SETTINGS = TrainingSettings(
    epochs=3, batch_size=2, learning_rate=3e-2, spec_augment=True, augment=AUGMENT, save_steps=4
)
CONTEXT = multiprocessing.get_context("forkserver")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Job:
    """Dropout and masks, which draw at random while training."""
    CONTEXT.set_forkserver_preload(["tests.speech.together"])
    root = tmp_path_factory.mktemp("kills")
    tiny_whisper(root / "whisper")
    job = Job(root / "whisper", write_clips(root / "clips", 14), root / "reference", SETTINGS, dropout=0.1)
    assert run(job) == 0
    return job


def run(job: Job) -> int:
    process = CONTEXT.Process(target=train, args=(job,))
    process.start()
    process.join()
    return process.exitcode


def history(job: Job) -> list[dict[str, float]]:
    return [json.loads(line) for line in (job.folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("moment", "at_step", "continues_at"),
    [("mid-epoch", 11, 10), pytest.param("before the mark", 16, 12, marks=pytest.mark.slow)],
)
def test_a_resume_within_an_epoch(uninterrupted, tmp_path, moment, at_step, continues_at):
    job = replace(uninterrupted, folder=tmp_path / "run")
    job = replace(job, settings=replace(SETTINGS, save_steps=5)) if moment == "mid-epoch" else job
    reference = uninterrupted
    if job.settings != SETTINGS:
        reference = replace(job, folder=tmp_path / "reference")
        assert run(reference) == 0
    assert run(replace(job, dies=moment, at_step=at_step)) == -signal.SIGKILL
    assert run(job) == 0
    assert begun_at(job) == [0, continues_at]
    assert_same_end(job, reference)


def test_where_checkpoints_are_made_changes_no_weight(uninterrupted, tmp_path):
    """With one after each epoch alone, and at every logged step: the same but for the steps that are logged."""
    for name, saving in (("epochs", {"save_steps": 0}), ("minutes", {"save_steps": 0, "save_minutes": 1e-9})):
        job = replace(uninterrupted, folder=tmp_path / name, settings=replace(SETTINGS, **saving))
        assert run(job) == 0
        ours, theirs = (
            [entry["eval_loss"] for entry in history(j) if "eval_loss" in entry] for j in (job, uninterrupted)
        )
        assert ours == theirs
    assert [entry["step"] for entry in history(job) if "loss" in entry] == [5, 6, 10, 12, 15, 18]
    assert [entry["step"] for entry in history(uninterrupted) if "loss" in entry] == [4, 5, 6, 8, 10, 12, 15, 16, 18]


@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_workers_change_nothing(uninterrupted, tmp_path, workers):
    """Not the batches, not the weights, not a resume within an epoch."""
    job = replace(uninterrupted, folder=tmp_path / "run", settings=replace(SETTINGS, workers=workers))
    assert run(replace(job, dies="mid-epoch", at_step=11)) == -signal.SIGKILL
    assert run(job) == 0
    assert begun_at(job) == [0, 8]
    assert_same_end(job, uninterrupted)


def kill_at_some_moment(processes: list, folder: Path, draw: random.Random, which: list[int]) -> None:
    """After so many files have come or gone, and a moment more: in a step, a save, an evaluation or a deletion."""
    changes, there = draw.randint(1, 60), files_in(folder)
    while changes and processes[0].is_alive():
        now = files_in(folder)
        changes, there = changes - (now != there), now
        time.sleep(0.001)
    time.sleep(draw.uniform(0, 0.05))
    for index in which:
        processes[index].kill()


def files_in(folder: Path) -> set[str]:
    return {f"{path}/{name}" for path, _, names in os.walk(folder) for name in names}


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "dora"])
def test_twenty_kills_at_random_moments(uninterrupted, tmp_path, method):
    """Over the whole of the run; one that comes to its end before its twentieth kill begins anew."""
    settings = replace(SETTINGS, epochs=12, gradient_accumulation=2, save_steps=2)
    dropout = 0.1 if method == "lora" else 0.0
    reference = replace(uninterrupted, folder=tmp_path / "reference", settings=settings, method=method, dropout=dropout)
    assert run(reference) == 0
    job, draw, kills, ends = replace(reference, folder=tmp_path / "run"), random.Random(method), 0, 0
    resumed_at: list[int] = []
    while kills < 20:
        process = CONTEXT.Process(target=train, args=(job,))
        process.start()
        kill_at_some_moment([process], job.folder, draw, [0])
        process.join()
        kills += process.exitcode == -signal.SIGKILL
        if process.exitcode == 0:
            assert_same_end(job, reference)
            ends += 1
            resumed_at += begun_at(job)
            shutil.rmtree(job.folder)
    assert run(job) == 0
    assert_same_end(job, reference)
    resumed_at += begun_at(job)
    assert len(resumed_at) >= 20 and len(set(resumed_at)) > 5


@pytest.mark.slow
@pytest.mark.parametrize("which", [[0], [1], [0, 1]], ids=["the first", "the second", "both"])
def test_kills_of_one_process_of_two(uninterrupted, tmp_path, which):
    """The one that is left ends with an error, and both go on together."""
    settings = replace(SETTINGS, batch_size=1, epochs=6, save_steps=2)
    reference = replace(uninterrupted, folder=tmp_path / "reference", settings=settings)
    assert run_together(2, reference, train_as) == [0, 0]
    job, draw = replace(reference, folder=tmp_path / "run"), random.Random(repr(which))
    for _ in range(5):
        codes = run_together(
            2, job, train_as, meanwhile=lambda started: kill_at_some_moment(started, job.folder, draw, which)
        )
        assert 0 not in codes or codes == [0, 0]
    assert run_together(2, job, train_as) == [0, 0]
    assert_same_end(job, reference)


def test_another_number_of_processes_is_refused(tmp_path):
    for process in range(2):
        (tmp_path / f"rng_state_{process}.pth").touch()
    check_processes(tmp_path, 2)
    with pytest.raises(ValueError, match="written by 2 processes at work together, and now there are 1, .*--fresh"):
        check_processes(tmp_path, 1)


def test_one_process_does_not_go_on_with_the_work_of_two(uninterrupted, tmp_path):
    job = replace(uninterrupted, folder=tmp_path / "run")
    shutil.copytree(uninterrupted.folder, job.folder)
    newest = max(job.folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    (newest / "rng_state.pth").rename(newest / "rng_state_0.pth")
    (newest / "rng_state_1.pth").touch()
    with pytest.raises(ValueError, match=r"run.checkpoint-\d+: written by 2 processes"):
        train(job)
    assert (newest / WHOLE).exists()


def test_what_a_kill_before_a_deletion_left_goes_when_training_goes_on(tmp_path):
    """The newest and the best stay, and a training that begins deletes nothing."""
    for step in (2, 4, 6, 8):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / WHOLE).touch()
    args = SimpleNamespace(output_dir=str(tmp_path))
    for newest, best, left in ((0, None, {2, 4, 6, 8}), (8, 4, {4, 8}), (8, None, {8})):
        state = SimpleNamespace(global_step=newest, best_global_step=best, is_world_process_zero=True)
        WholeCheckpoints().on_train_begin(args, state, None)
        assert {int(path.name.split("-")[1]) for path in tmp_path.iterdir()} == left
