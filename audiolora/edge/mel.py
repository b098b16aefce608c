"""Whisper's log-mel features in NumPy."""

from __future__ import annotations

import numpy as np

_FLOOR = 1e-10
_RANGE = 8.0  # below the clip's largest value, in powers of ten


def log_mel(
    samples: np.ndarray, n_frames: int, *, filters: np.ndarray, window: np.ndarray, hop: int, max_frames: int
) -> np.ndarray:
    """The first `n_frames` columns of the log-mel spectrogram that Whisper's feature extractor makes of 30 s.

    Computed in float64, so nearer to the formula than the extractor itself, whose Fourier transform is in float32.

    Args:
        samples: (L,), at most n_frames · hop of them; silence follows.
        n_frames: at most max_frames.
        filters: the mel filter bank (n_fft / 2 + 1, n_mels).
        window: (n_fft,).
        hop: samples from one frame to the next.
        max_frames: of the extractor.

    Returns:
        float32 (n_mels, n_frames).

    Example:
        >>> filters, window = np.ones((201, 80), np.float32), np.hanning(401)[:-1]
        >>> log_mel(np.zeros(16_000), 100, filters=filters, window=window, hop=160, max_frames=3000).shape
        (80, 100)
    """
    # One frame more than wanted: the window of the last reaches past its hop, and at the end samples are mirrored.
    computed = min(n_frames + 1, max_frames)
    padded = np.zeros(computed * hop)
    padded[: len(samples)] = samples
    mirrored = np.pad(padded, len(window) // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(mirrored, len(window))[::hop][:computed]
    spectrum = np.fft.rfft(frames * window, axis=1)
    power = spectrum.real**2 + spectrum.imag**2
    levels = np.log10(np.maximum(filters.T.astype(np.float64) @ power.T, _FLOOR))
    levels = np.maximum(levels, levels.max() - _RANGE)
    scaled: np.ndarray = ((levels + 4.0) / 4.0).astype(np.float32)
    return scaled[:, :n_frames]
