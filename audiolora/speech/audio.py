"""Clips as float32 mono samples at 16 kHz, whatever the file holds, and named errors for what is not a clip."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from audiolora.speech.sources import AudioError, AudioSource, Segment, Source

if TYPE_CHECKING:
    import soundfile

__all__ = ["MAX_DURATION_S", "SAMPLE_RATE_HZ", "AudioError", "duration_s", "read_audio"]

SAMPLE_RATE_HZ = 16_000
"""The rate every clip is brought to: what Whisper and wav2vec2 were trained on."""
MAX_DURATION_S = 30.0
"""The longest clip Whisper's encoder takes at once."""


_CUT = re.compile(r"^data : (\d+) \(should be (\d+)\)", re.MULTILINE)
_LENGTH_UNKNOWN = 0x7FFFF000  # programs that write a WAV into a pipe put the largest number there
_BLOCK = 1 << 16  # samples decoded at once on the way to a segment


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
    with _open(source, called) as file:
        rate_hz = file.samplerate
        _check_whole(file, called)
        first, stop = _bounds(source, file, called)
        _check_length((stop - first) / rate_hz, called, max_duration_s)
        try:
            frames = _frames(file, first, stop)  # (n_frames, n_channels)
        except RuntimeError as error:  # soundfile.LibsndfileError
            raise AudioError(f"{called}: corrupt audio ({error}); record or convert it again") from error
    if len(frames) < stop - first:
        raise AudioError(
            f"{called}: corrupt audio, {len(frames)} of {stop - first} samples could be read; convert it again"
        )
    if len(frames) == 0:
        raise AudioError(f"{called}: zero length, the file holds no samples; remove it or record it again")
    samples = frames.mean(axis=1, dtype=np.float32)
    if not np.isfinite(samples).all():
        at_s = np.flatnonzero(~np.isfinite(samples))[0] / rate_hz
        raise AudioError(f"{called}: NaN or infinite samples, the first at {at_s:.3f} s; export the clip again")
    if rate_hz != SAMPLE_RATE_HZ:
        import librosa

        samples = librosa.resample(samples, orig_sr=rate_hz, target_sr=SAMPLE_RATE_HZ)
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
    with _open(source, called) as file:
        first, stop = _bounds(source, file, called)
        return (stop - first) / file.samplerate


def _name(source: AudioSource | str) -> str:
    return f"audio of {len(source)} bytes" if isinstance(source, bytes) else str(source)


def _bounds(source: AudioSource | str, file: soundfile.SoundFile, called: str) -> tuple[int, int]:
    """The samples [first, stop) of the open file that are the clip."""
    return source.bounds(file.frames, file.samplerate, called) if isinstance(source, Segment) else (0, file.frames)


def _frames(file: soundfile.SoundFile, first: int, stop: int) -> np.ndarray:
    """Samples [first, stop), (n_frames, n_channels) float32."""
    # libsndfile's seek into Vorbis now and then lands elsewhere and into Opus is not exact; GSM 6.10 has none.
    if first and file.seekable() and file.format != "OGG":
        file.seek(first)
    else:
        left = first
        while left and (skipped := len(file.read(min(left, _BLOCK), dtype="float32", always_2d=True))):
            left -= skipped
    return file.read(stop - first, dtype="float32", always_2d=True)


def _check_whole(file: soundfile.SoundFile, called: str) -> None:
    """libsndfile reads a WAV that breaks off as a shorter clip, and says so in its log alone."""
    cut = _CUT.search(file.extra_info)
    if cut is None:
        return
    promised, there = int(cut[1]), int(cut[2])
    if there < promised < _LENGTH_UNKNOWN:
        raise AudioError(f"{called}: truncated, {there} of {promised} bytes of samples are there; fetch it again")


def _check_length(length_s: float, called: str, max_duration_s: float | None) -> None:
    if max_duration_s is not None and length_s > max_duration_s:
        raise AudioError(
            f"{called}: {length_s:.1f} s, longer than the limit of {max_duration_s:g} s; cut it into pieces"
        )


def _open(source: AudioSource | str, called: str) -> soundfile.SoundFile:
    import soundfile

    if isinstance(source, Segment):
        source = source.source
    if isinstance(source, Source):
        source = source.read()
    if not isinstance(source, bytes):
        path = Path(source)
        if path.is_dir():
            raise AudioError(f"{called}: is a folder, not an audio file")
        if not path.exists():
            raise AudioError(f"{called}: no such file")
        if path.stat().st_size == 0:
            raise AudioError(f"{called}: zero length, the file is empty; remove it or record it again")
    elif not source:
        raise AudioError(f"{called}: zero length, there are no bytes; remove it or record it again")
    try:
        return soundfile.SoundFile(io.BytesIO(source) if isinstance(source, bytes) else str(source))
    except (RuntimeError, OSError) as error:  # soundfile.LibsndfileError is a RuntimeError
        raise AudioError(f"{called}: corrupt, or not audio that libsndfile reads ({error})") from error
