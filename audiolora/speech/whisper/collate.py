"""Clips turned into batches for a Whisper: log-mel frames and labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from audiolora.speech.data.audio import SAMPLE_RATE_HZ
from audiolora.speech.sound.augmentation import torch_generator
from audiolora.speech.training.clips import IGNORED, batch_key
from audiolora.speech.whisper.context import ContextPolicy
from audiolora.speech.whisper.features import log_mel
from audiolora.speech.whisper.labels import label_ids


@dataclass(frozen=True)
class WhisperCollator:
    """A batch for Whisper: ``input_features (N, n_mels, n_frames)`` and ``labels (N, n_tokens)``.

    Args:
        processor: a ``WhisperProcessor`` whose tokenizer has its language and task set.
        context: how much audio the encoder sees.
        start_token: the decoder's first token, which the model puts before the labels by itself.
        training: whether its batches are trained on; only then does a mixed context draw, by `batch_key`.
    """

    processor: Any
    context: ContextPolicy
    start_token: int
    training: bool

    def __call__(self, items: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        audios = [item["audio"] for item in items]
        frames = self.context.n_frames(
            [len(audio) / SAMPLE_RATE_HZ for audio in audios],
            training=self.training,
            generator=torch_generator(batch_key(items)) if self.training else None,
        )
        features = [log_mel(self.processor, audio, frames) for audio in audios]
        tokens = [label_ids(self.processor.tokenizer, self.start_token, item) for item in items]
        labels = torch.nn.utils.rnn.pad_sequence(tokens, batch_first=True, padding_value=IGNORED)
        return {"input_features": torch.stack(features), "labels": labels}
