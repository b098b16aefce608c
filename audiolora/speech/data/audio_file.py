"""Audio files opened and read in portions, and what of them is refused; shared by all that decodes.

What a refusal calls the clip is the caller's; its message names the rule and the remedy.
"""

from __future__ import annotations

import io
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from audiolora.speech.data.sources import AudioError, AudioSource, Segment, Source

if TYPE_CHECKING:
    import soundfile

_CUT = re.compile(r"^(?:data| SSND|  Data Size  ) : (\d+) \(should be (\d+)\)", re.MULTILINE)  # WAV, AIFF, AU
_LENGTH_UNKNOWN = 0x7FFFF000  # programs that write a WAV into a pipe put the largest number there
_FRAMES_UNKNOWN = 1 << 62  # libsndfile's count where a FLAC's header has none is the largest number
_BLOCK = 1 << 16  # samples decoded at once on the way to a segment
_SYSTEM_ERROR = 2  # SF_ERR_SYSTEM: the machine's fault (no permission, too many open files), not the file's


def open_audio(source: AudioSource | str, called: str) -> soundfile.SoundFile:
    """Open a clip for reading; of a segment, the file that it is a part of.

    Raises:
        AudioError: a missing or empty file, a folder, or no audio.

    >>> open_audio("clip.wav", "the first clip").samplerate  # doctest: +SKIP
    8000
    """
    import soundfile

    if isinstance(source, Segment):
        source = source.source
    if isinstance(source, Source):
        source = source.read()
    if not isinstance(source, bytes):
        path = Path(source)
        if os.path.isdir(path):  # unlike the path's own, it does not raise for a name that is too long
            raise AudioError(f"{called}: is a folder, not an audio file", kind="missing")
        if not os.path.exists(path):
            raise AudioError(f"{called}: no such file", kind="missing")
        if path.stat().st_size == 0:
            raise AudioError(f"{called}: zero length, the file is empty; remove it or record it again", kind="empty")
    elif not source:
        raise AudioError(f"{called}: zero length, there are no bytes; remove it or record it again", kind="empty")
    try:
        file = soundfile.SoundFile(io.BytesIO(source) if isinstance(source, bytes) else str(source))
    except UnicodeEncodeError as error:
        raise AudioError(f"{called}: the file's name is not UTF-8; rename it", kind="unreadable") from error
    except (RuntimeError, OSError) as error:  # soundfile.LibsndfileError is a RuntimeError
        if isinstance(error, OSError) or getattr(error, "code", None) == _SYSTEM_ERROR:
            message = f"{called}: cannot be opened ({error}); is it yours to read?"
            raise AudioError(message, kind="unreadable") from error
        raise AudioError(f"{called}: corrupt, or not audio that libsndfile reads ({error})") from error
    if file.frames >= _FRAMES_UNKNOWN:
        file.close()
        raise AudioError(
            f"{called}: its header does not say how long it is, as of a FLAC that was written into a pipe; write it to "
            "a file again (flac -d, or ffmpeg -i OLD NEW)"
        )
    return file


def bounds_of(source: AudioSource | str, file: soundfile.SoundFile, called: str) -> tuple[int, int]:
    """The samples [first, stop) of the open file that are the clip.

    Raises:
        AudioError: a segment that the file is too short for.
    """
    return source.bounds(file.frames, file.samplerate, called) if isinstance(source, Segment) else (0, file.frames)


def skip_to(file: soundfile.SoundFile, first: int, called: str) -> None:
    """Go to sample `first` of a file that stands at its beginning.

    Raises:
        AudioError: what lies before cannot be decoded.
    """
    # libsndfile's seek into Vorbis now and then lands elsewhere and into Opus is not exact; GSM 6.10 has none.
    if first and file.seekable() and file.format != "OGG":
        try:
            file.seek(first)
        except RuntimeError as error:  # soundfile.LibsndfileError
            message = f"{called}: corrupt audio, {first / file.samplerate:.2f} s cannot be reached ({error}); "
            raise AudioError(message + "fetch or convert it again") from error
        return
    left = first
    while left and (skipped := len(read_frames(file, called, min(left, _BLOCK)))):
        left -= skipped


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
    """Refuse a WAV, AIFF or AU that breaks off: libsndfile reads it as a shorter clip, and says so in its log alone.

    Raises:
        AudioError: bytes of samples are missing.
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
            f"{called}: corrupt audio, {n_read} of {promised} samples could be read; convert it again",
            kind="truncated",
        )
    if n_read == 0:
        message = f"{called}: zero length, the file holds no samples; remove it or record it again"
        raise AudioError(message, kind="empty")


def check_finite(samples: np.ndarray, rate_hz: int, called: str, *, start_s: float = 0.0) -> None:
    """Refuse samples (n,) that hold NaN or infinity; the first of them lies `start_s` into the clip.

    Raises:
        AudioError: they do.

    >>> check_finite(np.zeros(8), 16_000, "clip.wav")
    """
    if not np.isfinite(samples).all():
        at_s = start_s + np.flatnonzero(~np.isfinite(samples))[0] / rate_hz
        message = f"{called}: NaN or infinite samples, the first at {at_s:.3f} s; export the clip again"
        raise AudioError(message, kind="nan")
