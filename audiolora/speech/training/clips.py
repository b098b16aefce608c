"""Clips as a model hears them: read, sent through the channel, and in training augmented."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from audiolora.speech.checks.measuring import durations_s
from audiolora.speech.data.audio import read_audio
from audiolora.speech.data.utterance import Utterance
from audiolora.speech.sound.augmentation import Augmentation
from audiolora.speech.sound.channels import Channel

IGNORED = -100
"""The label that transformers leaves out of the loss."""

Fits = Callable[[str, int], bool]

KEPT_S = 3600.0
"""Sets of up to an hour stay in memory: 230 MB at 16 kHz."""


class Clips(Dataset[dict[str, Any]]):
    """Utterances with their channel, read when asked for.

    Each item is ``{"audio": (n_samples,) float32 at 16 kHz, "text": str, "id": str, "language":
    str or None, "duration_s": float}``, the duration as the file has it. The channel is seeded by the
    clip's id, so a clip always sounds the same, in whatever order and process it is read.

    A set of up to ``KEPT_S`` is kept in memory once read: a channel's filters cost more than a short training step.

    Args:
        utterances: what to read.
        channel: applied to each clip.

    Raises:
        ValueError: no utterances.
        AudioError: a file that is missing, or no audio.
    """

    def __init__(self, utterances: Sequence[Utterance], channel: Channel) -> None:
        if not utterances:
            raise ValueError("no clips; each part of the split needs some: ask for more than 0 with test and dev")
        self.utterances, self.channel = tuple(utterances), channel
        self.durations_s = durations_s(self.utterances)
        self._kept: dict[int, np.ndarray] | None = {} if sum(self.durations_s) <= KEPT_S else None

    def __getstate__(self) -> dict[str, Any]:
        """What a worker process is sent where it is not forked: to read a clip is faster than to send it."""
        return {**self.__dict__, "_kept": None if self._kept is None else {}}

    def __len__(self) -> int:
        return len(self.utterances)

    def __getitem__(self, index: int) -> dict[str, Any]:
        utterance = self.utterances[index]
        item = {"audio": self._audio(index), "text": utterance.text, "id": utterance.id}
        return {**item, "language": utterance.language, "duration_s": self.durations_s[index]}

    def _audio(self, index: int) -> np.ndarray:
        if self._kept is not None and index in self._kept:
            return self._kept[index]
        utterance = self.utterances[index]
        audio = self.channel.apply(read_audio(utterance.audio, name=utterance.where), utterance.id)
        if self._kept is not None:
            self._kept[index] = audio
        return audio

    def languages(self) -> list[str | None]:
        """Every clip's language, as its utterance has it, in order."""
        return [utterance.language for utterance in self.utterances]

    def augmented(self, augmentation: Augmentation, *, seed: int, fits: Fits | None = None) -> "TrainingClips":
        """The same clips as training hears them, anew in each epoch: see `TrainingClips`."""
        return TrainingClips(self, augmentation, seed, fits)

    def audios(self) -> list[np.ndarray]:
        """Every clip's audio, in order."""
        return [self[i]["audio"] for i in range(len(self))]


class TrainingClips(Dataset[dict[str, Any]]):
    """Clips as training hears them: after the channel, each epoch draws effects for each clip.

    Items are those of `Clips` with one entry more: ``"key"``, a text of seed, epoch and clip id, which seeds all that
    is random about the item, here and in a collator (see `batch_key`). So an epoch's items are the same in whatever
    order, batches and processes they are read, and after a resume.

    Args:
        clips: what to read.
        augmentation: what to do to it; an empty one leaves clips as they are.
        seed: of the training.
        fits: whether a clip with this text may have so many samples; an effect that would make it longer or shorter
            than that is left out. None takes any length.

    Example:
        >>> heard = clips.augmented(parse_augmentation("noise5-20dB"), seed=0)  # doctest: +SKIP
        >>> heard.set_epoch(1)  # doctest: +SKIP
    """

    def __init__(self, clips: Clips, augmentation: Augmentation, seed: int, fits: Fits | None = None) -> None:
        self.clips, self.augmentation, self.seed, self.fits = clips, augmentation, seed, fits
        self.durations_s = clips.durations_s
        # Shared, for worker processes that live longer than an epoch must see it change.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        augmentation.prepare()

    @property
    def epoch(self) -> int:
        """The epoch that items are drawn for, from 0."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Draw for another epoch from now on."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = self.clips[index]
        key = f"{self.seed}/{self.epoch}/{item['id']}"
        fits = None if self.fits is None else partial(self.fits, item["text"])
        return {**item, "audio": self.augmentation.apply(item["audio"], key, fits=fits), "key": key}


def batch_key(items: Sequence[dict[str, Any]]) -> str:
    """What seeds the draws for a whole batch: the keys of its clips.

    Raises:
        ValueError: items without a key, which are not of `TrainingClips`.
    """
    if any("key" not in item for item in items):
        raise ValueError("a batch that is trained on has clips from Clips.augmented(...): they know seed and epoch")
    return "\0".join(item["key"] for item in items)
