"""What a clip's file holds, measured once: length, level, silence, clipping, a digest, or why it cannot be read.

Nothing here depends on the model or on the settings of a run, so that the facts may be kept (`clip_cache`).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from audiolora.speech.data.audio_file import (
    bounds_of,
    check_finite,
    check_total,
    check_whole,
    open_audio,
    read_frames,
    skip_to,
)
from audiolora.speech.data.sources import AudioError, AudioSource

if TYPE_CHECKING:
    import soundfile

FACTS_VERSION = 2
"""To be raised with every change of what is measured: facts of another version are not taken from the cache."""

WINDOW_S = 0.02
"""Sound and silence are told apart in windows of 20 ms."""
SILENT_BELOW_LOUDEST_DB = 40.0
"""A window this far below the clip's loudest one is silent."""
SILENT_DBFS = -60.0
"""A clip whose loudest window lies below this is silent as a whole."""
FLOOR_DBFS = -120.0
"""What digital silence is called: its level has no logarithm."""

_BLOCK_WINDOWS = 1500  # half a minute at a time: an hour of audio is measured in a few megabytes
_CLIP = "clip"
# The largest sample of these encodings over that of a float file; all others come to within one 16-bit step of 1.
_FULL_SCALE = {"PCM_U8": 127 / 128, "PCM_S8": 127 / 128, "ULAW": 32124 / 32768, "ALAW": 32256 / 32768}


@dataclass(frozen=True, slots=True)
class ClipFacts:
    """What was measured of a clip; of one that cannot be read, `fault` and `kind` alone.

    Args:
        fault: why it cannot be used, or None.
        kind: of the fault, a key of `findings.KINDS`.
        duration_s: length.
        sample_rate_hz, channels, encoding: as the file has them.
        peak: largest magnitude of any channel, full scale 1.
        clipped_share: share of samples at full scale, in [0, 1].
        dc_offset: mean of the channel whose mean is farthest from 0, full scale 1.
        level_dbfs: mean power of the mean of the channels without its offset, relative to full scale 1.
        leading_silence_s, trailing_silence_s: what is silent at the ends; a silent clip is all leading silence.
        silent: no window of the clip is louder than -60 dBFS.
        digest: of the samples and their rate; the same samples in WAV and in FLAC have the same.
    """

    fault: str | None = None
    kind: str = ""
    duration_s: float = 0.0
    sample_rate_hz: int = 0
    channels: int = 0
    encoding: str = ""
    peak: float = 0.0
    clipped_share: float = 0.0
    dc_offset: float = 0.0
    level_dbfs: float = FLOOR_DBFS
    leading_silence_s: float = 0.0
    trailing_silence_s: float = 0.0
    silent: bool = False
    digest: str = ""

    @property
    def sound_s(self) -> float:
        """From the first window that is not silent to the last."""
        return max(0.0, self.duration_s - self.leading_silence_s - self.trailing_silence_s)


def measure_clip(source: AudioSource | str) -> ClipFacts:
    """Decode a clip at its own rate and measure it; memory does not grow with its length.

    Args:
        source: as `read_audio` takes it.

    Returns: the facts; what `read_audio` would refuse at any length has a fault.

    >>> measure_clip("clip.wav").sample_rate_hz  # doctest: +SKIP
    8000
    """
    try:
        with open_audio(source, _CLIP) as file:
            check_whole(file, _CLIP)
            first, stop = bounds_of(source, file, _CLIP)
            skip_to(file, first, _CLIP)
            return _measure(file, stop - first)
    except AudioError as error:
        return ClipFacts(fault=str(error).removeprefix(f"{_CLIP}: "), kind=error.kind)


def _measure(file: soundfile.SoundFile, promised: int) -> ClipFacts:
    """Of the next `promised` samples of the file."""
    rate_hz = file.samplerate
    window = max(1, round(WINDOW_S * rate_hz))
    full_scale = _FULL_SCALE.get(file.subtype, 1 - 2**-15)
    digest = hashlib.blake2b(f"{rate_hz}\0".encode(), digest_size=16)
    total, peak, clipped, power = 0, 0.0, 0, 0.0
    sums = np.zeros(file.channels)
    levels = []  # mean square of each window, its own mean taken off
    while total < promised:
        frames = read_frames(file, _CLIP, min(window * _BLOCK_WINDOWS, promised - total))  # (n_frames, n_channels)
        if len(frames) == 0:
            break
        mono = frames.mean(axis=1, dtype=np.float32)
        check_finite(mono, rate_hz, _CLIP, start_s=total / rate_hz)
        magnitude = np.abs(frames)
        total += len(frames)
        peak = max(peak, float(magnitude.max()))
        clipped += int((magnitude >= full_scale).sum())
        sums += frames.sum(axis=0, dtype=np.float64)
        power += float(np.square(mono, dtype=np.float64).sum())
        levels.append(_window_levels(mono, window))
        digest.update(np.ascontiguousarray(mono, dtype="<f4").tobytes())
    check_total(total, promised, _CLIP)
    means, mono_mean = sums / total, float(sums.mean()) / total
    leading, trailing, silent = _silence(np.concatenate(levels), window, total)
    return ClipFacts(
        duration_s=total / rate_hz,
        sample_rate_hz=rate_hz,
        channels=file.channels,
        encoding=f"{file.format} {file.subtype}",
        peak=peak,
        clipped_share=clipped / (total * file.channels),
        dc_offset=float(means[np.abs(means).argmax()]),
        level_dbfs=float(_dbfs(np.array(power / total - mono_mean**2))),
        leading_silence_s=leading / rate_hz,
        trailing_silence_s=trailing / rate_hz,
        silent=silent,
        digest=digest.hexdigest(),
    )


def _window_levels(mono: np.ndarray, window: int) -> np.ndarray:
    """Mean square of each window (n_windows,) around its own mean; a rest at the end is a window of its own."""
    whole = len(mono) // window * window
    levels = mono[:whole].reshape(-1, window).var(axis=1, dtype=np.float64)
    return levels if whole == len(mono) else np.append(levels, mono[whole:].var(dtype=np.float64))


def _silence(levels: np.ndarray, window: int, total: int) -> tuple[int, int, bool]:
    """Silent samples at the start and at the end, and whether all of the clip is silent."""
    loudness = _dbfs(levels)
    loudest = float(loudness.max())
    if loudest < SILENT_DBFS:
        return total, 0, True
    sound = np.flatnonzero(loudness >= loudest - SILENT_BELOW_LOUDEST_DB)
    return int(sound[0]) * window, max(0, total - (int(sound[-1]) + 1) * window), False


def _dbfs(mean_square: np.ndarray) -> np.ndarray:
    return 10 * np.log10(np.maximum(mean_square, 10 ** (FLOOR_DBFS / 10)))
