"""Clips as float32 mono samples at 16 kHz, whatever the file holds, and named errors for what is not a clip."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import soundfile

SAMPLE_RATE_HZ = 16_000
"""The rate every clip is brought to: what Whisper and wav2vec2 were trained on."""
MAX_DURATION_S = 30.0
"""The longest clip Whisper's encoder takes at once."""


_CUT = re.compile(r"^data : (\d+) \(should be (\d+)\)", re.MULTILINE)
_SYSTEM_ERROR = 2  # SF_ERR_SYSTEM: the machine's fault (no permission, too many open files), not the file's
_LENGTH_UNKNOWN = 0x7FFFF000  # programs that write a WAV into a pipe put the largest number there


class AudioError(ValueError):
    """A clip that cannot be used.

    Args:
        message: names the file, the rule and the remedy.
        kind: what is wrong, a key of `findings.KINDS`.
    """

    def __init__(self, message: str, *, kind: str = "corrupt") -> None:
        super().__init__(message)
        self.kind = kind


def read_audio(
    source: Path | str | bytes, *, name: str | None = None, max_duration_s: float | None = None
) -> np.ndarray:
    """Read one clip.

    Args:
        source: path of an audio file that libsndfile reads (WAV, FLAC, OGG, Opus, MP3, …), or such a file's bytes.
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
        check_length(file.frames / rate_hz, called, max_duration_s)
        frames = read_frames(file, called)
        promised = file.frames
    check_total(len(frames), promised, called)
    samples = frames.mean(axis=1, dtype=np.float32)
    check_finite(samples, rate_hz, called)
    if rate_hz != SAMPLE_RATE_HZ:
        import librosa

        samples = librosa.resample(samples, orig_sr=rate_hz, target_sr=SAMPLE_RATE_HZ)
    return np.ascontiguousarray(samples, dtype=np.float32)


def duration_s(source: Path | str | bytes, *, name: str | None = None) -> float:
    """Length of a clip in seconds, from its header alone.

    Raises:
        AudioError: a missing file, a folder, or no audio.

    >>> duration_s("clip.wav")  # doctest: +SKIP
    2.5
    """
    with open_audio(source, name or _name(source)) as file:
        return file.frames / file.samplerate


def _name(source: Path | str | bytes) -> str:
    return f"audio of {len(source)} bytes" if isinstance(source, bytes) else str(source)


def read_frames(file: soundfile.SoundFile, called: str, n_frames: int = -1) -> np.ndarray:
    """Samples (n_frames, n_channels), float32, from where the file stands; all that are left by default.

    Raises:
        AudioError: they cannot be decoded.

    >>> read_frames(soundfile.SoundFile("clip.wav"), "clip.wav").shape  # doctest: +SKIP
    (20000, 1)
    """
    try:
        return file.read(n_frames, dtype="float32", always_2d=True)
    except RuntimeError as error:  # soundfile.LibsndfileError
        raise AudioError(f"{called}: corrupt audio ({error}); record or convert it again") from error


def check_whole(file: soundfile.SoundFile, called: str) -> None:
    """Refuse a WAV that breaks off: libsndfile reads it as a shorter clip, and says so in its log alone.

    Raises:
        AudioError: bytes of samples are missing.

    >>> check_whole(soundfile.SoundFile("clip.wav"), "clip.wav")  # doctest: +SKIP
    """
    cut = _CUT.search(file.extra_info)
    if cut is None:
        return
    promised, there = int(cut[1]), int(cut[2])
    if there < promised < _LENGTH_UNKNOWN:
        raise AudioError(
            f"{called}: truncated, {there} of {promised} bytes of samples are there; fetch it again", kind="truncated"
        )


def check_length(length_s: float, called: str, max_duration_s: float | None) -> None:
    """Refuse a clip that is longer than the limit.

    Raises:
        AudioError: it is.

    >>> check_length(12.0, "clip.wav", 30.0)
    """
    if max_duration_s is not None and length_s > max_duration_s:
        raise AudioError(
            f"{called}: {length_s:.1f} s, longer than the limit of {max_duration_s:g} s; cut it into pieces",
            kind="long",
        )


def check_total(n_read: int, promised: int, called: str) -> None:
    """Refuse a clip of which fewer samples could be read than its header promises, or none.

    Raises:
        AudioError: it is one.

    >>> check_total(16000, 16000, "clip.wav")
    """
    if n_read < promised:
        raise AudioError(
            f"{called}: corrupt audio, {n_read} of {promised} samples could be read; convert it again", kind="truncated"
        )
    if n_read == 0:
        raise AudioError(
            f"{called}: zero length, the file holds no samples; remove it or record it again", kind="empty"
        )


def check_finite(samples: np.ndarray, rate_hz: int, called: str, *, start_s: float = 0.0) -> None:
    """Refuse samples (n,) that hold NaN or infinity; the first of them lies `start_s` into the clip.

    Raises:
        AudioError: they do.

    >>> check_finite(np.zeros(8), 16_000, "clip.wav")
    """
    if not np.isfinite(samples).all():
        at_s = start_s + np.flatnonzero(~np.isfinite(samples))[0] / rate_hz
        raise AudioError(
            f"{called}: NaN or infinite samples, the first at {at_s:.3f} s; export the clip again", kind="nan"
        )


def open_audio(source: Path | str | bytes, called: str) -> soundfile.SoundFile:
    """Open a clip for reading.

    Raises:
        AudioError: a missing or empty file, a folder, or no audio.

    >>> open_audio("clip.wav", "the first clip").samplerate  # doctest: +SKIP
    8000
    """
    import soundfile

    if not isinstance(source, bytes):
        path = Path(source)
        if path.is_dir():
            raise AudioError(f"{called}: is a folder, not an audio file", kind="missing")
        if not path.exists():
            raise AudioError(f"{called}: no such file", kind="missing")
        if path.stat().st_size == 0:
            raise AudioError(f"{called}: zero length, the file is empty; remove it or record it again", kind="empty")
    elif not source:
        raise AudioError(f"{called}: zero length, there are no bytes; remove it or record it again", kind="empty")
    try:
        return soundfile.SoundFile(io.BytesIO(source) if isinstance(source, bytes) else str(source))
    except (RuntimeError, OSError) as error:  # soundfile.LibsndfileError is a RuntimeError
        if isinstance(error, OSError) or getattr(error, "code", None) == _SYSTEM_ERROR:
            raise AudioError(
                f"{called}: cannot be opened ({error}); is it yours to read?", kind="unreadable"
            ) from error
        raise AudioError(f"{called}: corrupt, or not audio that libsndfile reads ({error})") from error
