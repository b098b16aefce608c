"""Training clips and their order: by seed, epoch and clip alone, whatever reads them and wherever a run breaks off."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate.data_loader import prepare_data_loader, skip_first_batches
from torch.utils.data import DataLoader, RandomSampler

from audiolora.speech.data.manifests import read_utterances
from audiolora.speech.sound.augmentation import parse_augmentation
from audiolora.speech.sound.channels import parse_channel
from audiolora.speech.training.clips import Clips, TrainingClips, batch_key
from audiolora.speech.training.sampling import EpochsOfClips, LikeLengths
from audiolora.speech.training.settings import TrainingSettings
from audiolora.speech.whisper import training
from tests.speech.tiny_training import Job, final, fit, write_clips
from tests.speech.tiny_whisper import tiny_whisper

SPEC = "noise5-20dB,gain,mulaw@0.3"
DRAWN = TrainingSettings(
    epochs=2, batch_size=3, context="mix", learning_rate=3e-2, spec_augment=True, augment="noise5-20dB,gain,mulaw@0.3"
)


@pytest.fixture(scope="module")
def job(tmp_path_factory) -> Job:
    root = tmp_path_factory.mktemp("sampling")
    tiny_whisper(root / "whisper")
    return Job(root / "whisper", write_clips(root / "clips", 10), root / "run", DRAWN, dropout=0.1)


@pytest.fixture
def clips(job) -> TrainingClips:
    return Clips(read_utterances(job.manifest), parse_channel("clean")).augmented(parse_augmentation(SPEC), seed=0)


def heard(loader: DataLoader) -> dict[str, np.ndarray]:
    """Key -> samples of everything in an epoch."""
    return {item["key"]: item["audio"] for batch in loader for item in batch}


def assert_same(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> None:
    assert first.keys() == second.keys()
    for key in first:
        np.testing.assert_array_equal(first[key], second[key])


def test_each_epoch_draws_anew_and_each_clip_for_itself(clips):
    first = clips[3]
    clips.set_epoch(1)
    second = clips[3]
    assert (first["key"], second["key"]) == (f"0/0/{first['id']}", f"0/1/{first['id']}")
    assert not np.array_equal(first["audio"], second["audio"])
    clips.set_epoch(0)
    np.testing.assert_array_equal(clips[3]["audio"], first["audio"])  # what is kept in memory is the clip as it is
    other_seed = clips.clips.augmented(clips.augmentation, seed=1)[3]
    assert not np.array_equal(other_seed["audio"], first["audio"])
    np.testing.assert_array_equal(
        first["audio"], parse_augmentation(SPEC).apply(clips.clips[3]["audio"], f"0/0/{first['id']}")
    )


def test_no_augmentation_leaves_the_clips_alone(clips):
    plain = clips.clips.augmented(parse_augmentation(""), seed=0)
    for index in range(len(plain)):
        np.testing.assert_array_equal(plain[index]["audio"], clips.clips[index]["audio"])


def test_a_batch_is_keyed_by_its_clips(clips):
    items = [clips[0], clips[1]]
    assert batch_key(items) != batch_key(items[::-1]) != batch_key(items[:1])
    with pytest.raises(ValueError, match=r"Clips.augmented"):
        batch_key([clips.clips[0]])


@pytest.mark.parametrize("persistent", [False, True])
def test_worker_processes_hear_the_same_in_every_epoch(clips, persistent):
    """Also those that live on when the epoch changes."""
    loaders = [
        DataLoader(
            clips,
            batch_size=3,
            shuffle=True,
            num_workers=workers,
            collate_fn=list,
            persistent_workers=persistent and workers > 0,
            multiprocessing_context="fork" if workers else None,
        )
        for workers in (0, 1, 2)
    ]
    for epoch in (0, 1):
        clips.set_epoch(epoch)
        alone, one, two = map(heard, loaders)
        assert all(key.startswith(f"0/{epoch}/") for key in alone)
        assert_same(alone, one)
        assert_same(alone, two)


def shards(clips: TrainingClips, sampler: object) -> Iterator[DataLoader]:
    """What each of two processes has of a Trainer's loader."""
    for rank in range(2):
        loader = DataLoader(clips, batch_size=2, sampler=sampler, collate_fn=list)
        yield prepare_data_loader(
            loader, num_processes=2, process_index=rank, put_on_device=False, use_seedable_sampler=True, data_seed=0
        )


@pytest.mark.parametrize("order", ["random", "length"])
def test_two_processes_share_an_epoch_between_them(clips, order):
    """Each clip once, in the epoch that the callback tells, which accelerate keeps from a data set it has wrapped."""
    sampler = RandomSampler(clips) if order == "random" else LikeLengths(clips, batch_size=4)
    loaders = list(shards(clips, sampler))
    for epoch in (0, 1, 2):
        clips.set_epoch(7)  # of neither
        parts = []
        for loader in loaders:
            EpochsOfClips().on_epoch_begin(None, SimpleNamespace(epoch=float(epoch)), None, train_dataloader=loader)
            loader.set_epoch(epoch)
            parts.append(heard(loader))
        both = parts[0] | parts[1]
        assert {key.rsplit("/", 1)[0] for key in both} == {f"0/{epoch}"} and len(both) == len(clips)
        assert len(parts[0].keys() & parts[1].keys()) <= 2  # the last batches are filled up from the first


@pytest.mark.parametrize("at", [0, 1, 3])
def test_the_rest_of_an_epoch_is_what_was_left(clips, at):
    """A resume in the middle: the callback tells the epoch, and the order is that of the epoch."""
    loader = DataLoader(clips, batch_size=2, sampler=LikeLengths(clips, batch_size=2), collate_fn=list)
    loader = prepare_data_loader(loader, put_on_device=False)
    loader.set_epoch(1)
    whole = [[item["key"] for item in batch] for batch in loader]
    clips.set_epoch(0)
    EpochsOfClips().on_epoch_begin(None, SimpleNamespace(epoch=1 + at / 5), None, train_dataloader=loader)
    rest = skip_first_batches(loader, at)  # as the Trainer does
    rest.set_epoch(1)
    assert [[item["key"] for item in batch] for batch in rest] == whole[at:]


def test_batches_of_like_length_have_little_padding():
    lengths = np.random.default_rng(0).uniform(0.5, 10.0, size=400)

    def padding(order: list[int]) -> float:
        batches = [lengths[order[start : start + 8]] for start in range(0, len(order), 8)]
        return 1 - lengths.sum() / sum(len(batch) * batch.max() for batch in batches)

    orders = [
        list(LikeLengths(SimpleNamespace(durations_s=lengths, seed=seed, epoch=epoch), batch_size=8))
        for seed in (0, 1)
        for epoch in range(4)
    ]
    assert all(sorted(order) == list(range(400)) for order in orders)
    assert len({tuple(order) for order in orders}) == 8
    assert max(map(padding, orders)) < 0.15
    assert min(padding(np.random.default_rng(seed).permutation(400).tolist()) for seed in range(8)) > 0.3


def assert_same_weights(first: Path, second: Path) -> None:
    ours, theirs = final(first), final(second)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def train(job: Job) -> list[dict[str, float]]:
    clips = read_utterances(job.manifest)
    return fit(job, clips[3:], clips[:3])


@pytest.mark.slow
@pytest.mark.parametrize("sampling", ["random", "length"])
def test_training_does_not_depend_on_the_workers(job, tmp_path, sampling):
    """Effects, contexts, masks, dropout and order: bit-equal weights with 0, 1 and 2 processes that read."""
    folders = []
    for workers in (0, 1, 2):
        folders.append(tmp_path / str(workers))
        train(replace(job, folder=folders[-1], settings=replace(DRAWN, workers=workers, sampling=sampling)))
    assert_same_weights(folders[0], folders[1])
    assert_same_weights(folders[0], folders[2])


@pytest.mark.slow
@pytest.mark.parametrize("sampling", ["random", "length"])
def test_a_run_broken_off_in_the_middle_of_an_epoch_ends_the_same(job, tmp_path, sampling, monkeypatch):
    arguments = training.trainer_arguments

    def after_every_step(*args: object, **kwargs: object) -> object:
        how = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1}
        return replace(arguments(*args, **kwargs), **how)

    monkeypatch.setattr(training, "trainer_arguments", after_every_step)
    settings = replace(DRAWN, sampling=sampling)
    whole, broken = (replace(job, folder=tmp_path / name, settings=settings) for name in ("whole", "broken"))
    train(whole)
    with pytest.raises(KeyboardInterrupt):
        train(replace(broken, dies="interrupt", at_step=5))
    train(broken)
    assert (broken.folder / "began.txt").read_text().split() == ["0", "4"]  # of three steps an epoch
    assert_same_weights(whole.folder, broken.folder)
