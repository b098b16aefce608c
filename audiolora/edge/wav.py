"""WAV files with the standard library: whole numbers of 8 to 32 bits, any number of channels."""

from __future__ import annotations

import os
import wave

import numpy as np


def read_wav(path: str | os.PathLike[str]) -> tuple[np.ndarray, int]:
    """A clip for `Session.transcribe`.

    Args:
        path: a WAV file of whole numbers (PCM).

    Returns:
        Samples (L,) float32, full scale at 1, the mean of the channels; and their rate, Hz.

    Raises:
        ValueError: no WAV file, or one of another encoding.

    Example:
        >>> audio, rate_hz = read_wav("door.wav")  # doctest: +SKIP
    """
    try:
        with wave.open(os.fspath(path), "rb") as file:
            channels, width, rate_hz, frames, _, _ = file.getparams()
            data = file.readframes(frames)
    except (wave.Error, EOFError) as error:
        raise ValueError(
            f"{path}: no WAV file of whole numbers ({error}); convert it, or read it with soundfile"
        ) from None
    if len(data) != frames * channels * width:
        raise ValueError(f"{path}: truncated, {len(data)} of {frames * channels * width} bytes; fetch it again")
    return _samples(data, width).reshape(-1, channels).mean(axis=1, dtype=np.float32), rate_hz


def _samples(data: bytes, width: int) -> np.ndarray:
    """By convention one byte is unsigned, with silence at 128, and more are signed, the lowest first."""
    if width == 1:
        return (np.frombuffer(data, np.uint8).astype(np.float32) - 128) / 128
    padded = np.zeros((len(data) // width, 4), np.uint8)
    padded[:, 4 - width :] = np.frombuffer(data, np.uint8).reshape(-1, width)
    whole = padded.view("<i4")[:, 0]
    scaled: np.ndarray = (whole / 2.0**31).astype(np.float32)
    return scaled
