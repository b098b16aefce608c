"""The order in which a Trainer takes training clips, and the epoch that it takes them in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import Sampler
from transformers import TrainerCallback
from transformers.trainer_pt_utils import LengthGroupedSampler

from audiolora.speech.sound.augmentation import torch_generator
from audiolora.speech.training.clips import TrainingClips
from audiolora.speech.training.settings import Sampling


class EpochsOfClips(TrainerCallback):
    """Tells `TrainingClips` each epoch as it begins.

    accelerate calls a data set's ``set_epoch`` too, but not where it has wrapped the batches: on several processes, and
    after a resume in the middle of an epoch.
    """

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        clips = kwargs["train_dataloader"].dataset
        if isinstance(clips, TrainingClips):
            clips.set_epoch(int(state.epoch or 0))


class OrdersClips:
    """For a Trainer of `TrainingClips`: its clips in the order that `settings.sampling` asks for.

    Args:
        sampling: see `TrainingSettings`.
    """

    args: Any
    train_dataset: Any

    def __init__(self, *args: Any, sampling: Sampling = "random", **kwargs: Any) -> None:
        self._sampling = sampling
        super().__init__(*args, **kwargs)

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int] | None:
        if self._sampling == "random":
            return super()._get_train_sampler(train_dataset)  # type: ignore[misc]
        clips = self.train_dataset if train_dataset is None else train_dataset
        processes = self.args.world_size * self.args.gradient_accumulation_steps
        return LikeLengths(clips, self.args.train_batch_size * processes)


class LikeLengths(LengthGroupedSampler):
    """transformers' batches of like length, in an order that seed and epoch alone decide.

    transformers' own draws from torch's global generator: another order in each process, and after a resume in the
    middle of an epoch.

    Args:
        clips: what to order, by the durations of the files.
        batch_size: clips of an update, on all processes.
    """

    def __init__(self, clips: TrainingClips, batch_size: int) -> None:
        super().__init__(batch_size, lengths=[round(1000 * duration_s) for duration_s in clips.durations_s])
        self.clips = clips

    def __iter__(self) -> Iterator[int]:
        self.generator: torch.Generator = torch_generator(f"order {self.clips.seed}/{self.clips.epoch}")
        return super().__iter__()
