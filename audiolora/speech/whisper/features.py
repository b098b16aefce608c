"""Whisper's log-mel features of a clip."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from audiolora.speech.whisper.context import FRAMES_PER_S, MAX_FRAMES

if TYPE_CHECKING:
    from transformers import WhisperProcessor

SAMPLE_RATE_HZ = 16_000
HOP_SAMPLES = SAMPLE_RATE_HZ // FRAMES_PER_S  # 160, 10 ms


def log_mel(processor: WhisperProcessor, audio: np.ndarray, n_frames: int = MAX_FRAMES) -> torch.Tensor:
    """Whisper's log-mel spectrogram of a clip, padded with silence to `n_frames`.

    It is the first `n_frames` columns of the 30 s that Whisper's feature extractor makes. The extractor scales by the
    clip's maximum and floors at 8 (80 dB) below it; silence never is the maximum, so the length does not matter.

    Args:
        processor: the model's processor.
        audio: samples (L,), 16 kHz, mono, float, at most `n_frames` * 160 of them.
        n_frames: frames of 10 ms; at most 3000.

    Returns:
        float32 (n_mels, n_frames).

    Raises:
        ValueError: the audio is empty, not one-dimensional, not finite or longer than `n_frames`.

    Example:
        >>> log_mel(processor, np.zeros(16_000, np.float32), 100).shape  # doctest: +SKIP
        torch.Size([80, 100])
    """
    samples = np.asarray(audio, dtype=np.float32)
    check_samples(samples, "audio")
    if not 0 < n_frames <= MAX_FRAMES:
        raise ValueError(f"n_frames must be between 1 and {MAX_FRAMES}, got {n_frames}")
    if len(samples) > n_frames * HOP_SAMPLES:
        raise ValueError(
            f"audio lasts {len(samples) / SAMPLE_RATE_HZ:.2f} s, more than the {n_frames / FRAMES_PER_S:.2f} s of "
            "context; give more frames or cut the clip"
        )
    # One frame more than needed: the last frame's window reaches past its hop; at the end the extractor would mirror.
    computed = min(n_frames + 1, MAX_FRAMES)
    features = processor.feature_extractor(
        samples, sampling_rate=SAMPLE_RATE_HZ, max_length=computed * HOP_SAMPLES, return_tensors="pt"
    ).input_features[0]
    return features[:, :n_frames].contiguous()


def check_samples(samples: np.ndarray, name: str) -> None:
    """Raise a ValueError that calls the clip `name` unless it is mono, finite and at least a sample long."""
    if samples.ndim != 1 or samples.size == 0:
        raise ValueError(f"{name} must be mono with at least one sample, shape (L,); got shape {samples.shape}")
    if not np.isfinite(samples).all():
        raise ValueError(f"{name} holds NaN or infinite samples; repair or drop the clip")
