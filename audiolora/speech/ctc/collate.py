"""Batches for CTC models: what the feature extractor makes of each clip alone, padded, and the texts' tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from audiolora.speech.ctc.frames import FrameCount
from audiolora.speech.ctc.targets import Encode, target_encoder, target_fault
from audiolora.speech.data.audio import SAMPLE_RATE_HZ
from audiolora.speech.training.clips import IGNORED


def ctc_features(processor: Any, audios: Sequence[np.ndarray]) -> dict[str, torch.Tensor]:
    """What a CTC model takes for a batch of clips.

    Each clip is normalised by itself, as it would be alone (a feature extractor given several normalises over their
    padding where it makes no mask), and padded with the extractor's padding value.

    Args:
        processor: whose feature extractor is Wav2Vec2's (samples, normalised where it says so), SeamlessM4T's or
            Parakeet's (log-mel frames).
        audios: clips (L,), 16 kHz, mono, float.

    Returns:
        ``input_values (N, L)`` or ``input_features (N, steps, n_mels)``, float32; with them ``attention_mask (N, L)``
        or ``(N, steps)``, integer, where the extractor gives one.

    Raises:
        ValueError: an extractor of another sampling rate.

    Example:
        >>> ctc_features(processor, [np.zeros(16_000), np.zeros(8_000)])["input_values"].shape  # doctest: +SKIP
        torch.Size([2, 16000])
    """
    extractor = processor.feature_extractor
    if extractor.sampling_rate != SAMPLE_RATE_HZ:
        raise ValueError(
            f"the feature extractor takes {extractor.sampling_rate} Hz and audio is read at {SAMPLE_RATE_HZ} Hz; take "
            "a model of that rate"
        )
    clips = [np.asarray(audio, np.float32) for audio in audios]
    made = [extractor(clip, sampling_rate=SAMPLE_RATE_HZ, return_tensors="pt") for clip in clips]
    name = extractor.model_input_names[0]
    if masked := name != "input_values" or bool(extractor.return_attention_mask):
        masks = [
            one["attention_mask"][0] if "attention_mask" in one else torch.ones(len(one[name][0]), dtype=torch.long)
            for one in made
        ]
    # log-mel extractors may pad a clip to a whole step: the mask is shorter than the features, or ends in zeros
    batch = {name: _padded([one[name][0].float() for one in made], extractor.padding_value)}
    return batch | {"attention_mask": _padded([mask.long() for mask in masks], 0)} if masked else batch


def _padded(rows: Sequence[torch.Tensor], value: float) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=value)


@dataclass(frozen=True)
class CtcCollator:
    """A batch for a CTC model: `ctc_features`, and ``labels (N, n_tokens)`` int64 padded with -100.

    Args:
        frames: of the model.
        processor: the model's feature extractor and tokenizer.
        language: code of the texts' language.

    Raises:
        ValueError: in a call, a clip that cannot be trained on, with its id.
    """

    frames: FrameCount
    processor: Any
    language: str | None

    def __call__(self, items: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        encode = target_encoder(self.processor, self.language)
        labels = _padded([torch.tensor(self._written(item, encode)) for item in items], IGNORED)
        return ctc_features(self.processor, [item["audio"] for item in items]) | {"labels": labels}

    def _written(self, item: dict[str, Any], encode: Encode) -> list[int]:
        if (fault := target_fault(self.frames, encode, item["text"], len(item["audio"]))) is not None:
            raise ValueError(f"{item['id']}: {fault}")
        return encode(item["text"])


@dataclass(frozen=True)
class Fits:
    """Whether a clip of so many samples could be trained on with its text: one played faster may not.

    Args:
        frames, processor, language: see `CtcCollator`.
        mask_time_length: frames of a SpecAugment mask, where there are masks.
    """

    frames: FrameCount
    processor: Any
    language: str | None
    mask_time_length: int | None = None

    def __call__(self, text: str, n_samples: int) -> bool:
        encode = target_encoder(self.processor, self.language)
        return target_fault(self.frames, encode, text, n_samples, mask_time_length=self.mask_time_length) is None
