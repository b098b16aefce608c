"""Clips as a device's speech models take them: mono, float, at the model's own rate."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def checked_clips(audios: Sequence[np.ndarray], sample_rate_hz: int, model_rate_hz: int) -> list[np.ndarray]:
    """The clips as float32 (samples,).

    Args:
        audios: mono, float, full scale at 1.
        sample_rate_hz: theirs.
        model_rate_hz: the one that the model was trained on; nothing is resampled here.

    Raises:
        ValueError: another rate, or a clip of another shape or type, without a sample, or with values that are not
            finite; it is named by its index.

    Example:
        >>> checked_clips([np.zeros(3)], 16_000, 16_000)[0].dtype
        dtype('float32')
    """
    if sample_rate_hz != model_rate_hz:
        raise ValueError(
            f"sample_rate_hz must be {model_rate_hz}, which the model was trained on, got {sample_rate_hz!r}; resample "
            f"first, for example with soxr: audio = soxr.resample(audio, {sample_rate_hz}, {model_rate_hz})"
        )
    clips = []
    for i, audio in enumerate(audios):
        clip = np.asarray(audio)
        if clip.ndim != 1 or clip.size == 0:
            raise ValueError(
                f"clip {i} must be mono with at least one sample, shape (samples,), got shape {clip.shape}"
            )
        if clip.dtype.kind != "f":
            raise ValueError(f"clip {i} must be float, full scale at 1, got {clip.dtype}; divide int16 by 32768")
        if not np.isfinite(clip).all():
            raise ValueError(f"clip {i} holds NaN or infinite samples; repair or drop it")
        clips.append(clip.astype(np.float32))
    return clips
