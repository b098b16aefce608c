"""Clips as a model hears them: read, sent through the channel, and turned into batches of log-mel frames."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from audiolora.speech.audio import MAX_DURATION_S, SAMPLE_RATE_HZ, duration_s, read_audio
from audiolora.speech.channels import Channel
from audiolora.speech.context import ContextPolicy
from audiolora.speech.features import log_mel
from audiolora.speech.labels import label_ids
from audiolora.speech.torchaudio_extra import speed_perturb
from audiolora.speech.utterance import Utterance

IGNORED = -100
"""The label that transformers leaves out of the loss."""

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
        self.durations_s = tuple(duration_s(utterance.audio, name=utterance.where) for utterance in self.utterances)
        self._kept: dict[int, np.ndarray] | None = {} if sum(self.durations_s) <= KEPT_S else None

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

    def audios(self) -> list[np.ndarray]:
        """Every clip's audio, in order."""
        return [self[i]["audio"] for i in range(len(self))]


@dataclass(frozen=True)
class WhisperCollator:
    """A batch for Whisper: ``input_features (N, n_mels, n_frames)`` and ``labels (N, n_tokens)``.

    Args:
        processor: a ``WhisperProcessor`` whose tokenizer has its language and task set.
        context: how much audio the encoder sees.
        start_token: the decoder's first token, which the model puts before the labels by itself.
        training: whether its batches are trained on; only then does a mixed context draw, and speed change.
        speed: in training, a clip is played at 1 - speed, 1 or 1 + speed times its speed, as torch's generator draws.
    """

    processor: Any
    context: ContextPolicy
    start_token: int
    training: bool
    speed: float = 0.0

    def __call__(self, items: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        audios = [self._at_some_speed(item["audio"]) for item in items]
        frames = self.context.n_frames([len(audio) / SAMPLE_RATE_HZ for audio in audios], training=self.training)
        features = [log_mel(self.processor, audio, frames) for audio in audios]
        heard = zip(items, audios, strict=True)
        tokens = [
            label_ids(self.processor.tokenizer, self.start_token, {**item, "audio": audio}) for item, audio in heard
        ]
        labels = torch.nn.utils.rnn.pad_sequence(tokens, batch_first=True, padding_value=IGNORED)
        return {"input_features": torch.stack(features), "labels": labels}

    def _at_some_speed(self, audio: np.ndarray) -> np.ndarray:
        if not self.training or not self.speed:
            return audio
        factor = 1 + self.speed * (int(torch.randint(3, ())) - 1)
        if factor == 1 or len(audio) / factor > MAX_DURATION_S * SAMPLE_RATE_HZ:  # slower, it would not fit the model
            return audio
        return speed_perturb(torch.from_numpy(audio), factor=factor, sample_rate_hz=SAMPLE_RATE_HZ).numpy()
