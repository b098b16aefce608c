"""Clips as float32 mono samples at 16 kHz, whatever the file holds, and named errors for what is not a clip."""

from __future__ import annotations

import numpy as np

from audiolora.speech.data.audio_file import (
    bounds_of,
    check_finite,
    check_length,
    check_total,
    check_whole,
    open_audio,
    read_frames,
    skip_to,
)
from audiolora.speech.data.sources import AudioError, AudioSource, Segment

__all__ = ["MAX_DURATION_S", "SAMPLE_RATE_HZ", "AudioError", "duration_s", "read_audio"]

SAMPLE_RATE_HZ = 16_000
"""The rate every clip is brought to: what Whisper and wav2vec2 were trained on."""
MAX_DURATION_S = 30.0
"""The longest clip Whisper's encoder takes at once."""


def read_audio(
    source: AudioSource | str, *, name: str | None = None, max_duration_s: float | None = None
) -> np.ndarray:
    """Read one clip.

    Args:
        source: path of an audio file that libsndfile reads (WAV, FLAC, OGG, Opus, MP3, …), such a file's bytes, or a
            source: a segment of a file, a member of a tar, a cell of a table. Of a segment, its samples alone are
            read, but for OGG (Vorbis, Opus) and GSM, which are decoded from their beginning.
        name: what errors call the clip; the path by default.
        max_duration_s: refuse a longer clip; None takes any length.

    Returns: samples (n_samples,), float32, mono (the mean of the channels), 16 kHz, n_samples >= 1.

    Raises:
        AudioError: a missing file, a folder, corrupt or no audio, no samples, NaN or infinite samples, too long.

    >>> read_audio("clip.wav").dtype  # doctest: +SKIP
    dtype('float32')
    """
    called = name or _name(source)
    with open_audio(source, called) as file:
        rate_hz = file.samplerate
        check_whole(file, called)
        first, stop = bounds_of(source, file, called)
        check_length((stop - first) / rate_hz, called, max_duration_s)
        skip_to(file, first, called)
        frames = read_frames(file, called, stop - first)
    check_total(len(frames), stop - first, called)
    samples = frames.mean(axis=1, dtype=np.float32)
    check_finite(samples, rate_hz, called)
    if rate_hz != SAMPLE_RATE_HZ:
        import librosa

        most = -(-len(samples) * SAMPLE_RATE_HZ // rate_hz)  # librosa's own count, a float, may be one more
        samples = librosa.resample(samples, orig_sr=rate_hz, target_sr=SAMPLE_RATE_HZ)[:most]
    return np.ascontiguousarray(samples, dtype=np.float32)


def duration_s(source: AudioSource | str, *, name: str | None = None) -> float:
    """Length of a clip in seconds, from its header alone.

    The length that a manifest gives a segment is taken as it is, without opening the file; `read_audio` verifies it.

    Raises:
        AudioError: a missing file, a folder, or no audio.

    >>> duration_s("clip.wav")  # doctest: +SKIP
    2.5
    """
    if isinstance(source, Segment) and source.duration_s is not None:
        return source.duration_s
    called = name or _name(source)
    with open_audio(source, called) as file:
        first, stop = bounds_of(source, file, called)
        return (stop - first) / file.samplerate


def _name(source: AudioSource | str) -> str:
    return f"audio of {len(source)} bytes" if isinstance(source, bytes) else str(source)
