"""There and back through a codec, by libsndfile: same length, no delay."""

from __future__ import annotations

import io

import numpy as np

from audiolora.speech.data.audio import SAMPLE_RATE_HZ

TELEPHONE_HZ = 8000
_OPUS_KBPS = (6.0, 256.0)  # libsndfile's compression levels 1 and 0, mono
_MP3_KBPS = (8.0, 160.0)  # the same, at 16 kHz
_MP3_DELAY = 576 + 529  # samples, of LAME's encoder and of any decoder


def telephone_codec(audio: np.ndarray, subtype: str) -> np.ndarray:
    """A codec of the telephone network, at 8 kHz.

    Args:
        audio: samples (n,), 16 kHz; clipped at full scale.
        subtype: libsndfile's name: GSM610 (GSM 06.10 full rate), ULAW or ALAW (G.711).

    Returns: samples (n,), 16 kHz.
    """
    from scipy.signal import resample_poly

    # Resampling overshoots what GSM can hold.
    decoded = _through(resample_poly(audio, 1, 2), TELEPHONE_HZ, peak=0.99, format="WAV", subtype=subtype)
    return resample_poly(decoded, 2, 1)[: len(audio)]


def opus_codec(audio: np.ndarray, kbps: float) -> np.ndarray:
    """Opus (RFC 6716) in Ogg, variable bit rate.

    Args:
        audio: samples (n,), 16 kHz; clipped at full scale.
        kbps: mean bit rate in kbit/s, 6 to 256.

    Returns: samples (n,), 16 kHz.
    """
    level = _compression_level(kbps, _OPUS_KBPS)
    return _through(audio, SAMPLE_RATE_HZ, format="OGG", subtype="OPUS", compression_level=level)


def mp3_codec(audio: np.ndarray, kbps: float) -> np.ndarray:
    """MPEG-2 layer III by LAME, constant bit rate.

    Args:
        audio: samples (n,), 16 kHz; clipped at full scale.
        kbps: kbit/s, 16 to 160; the nearest of the format's own is taken.

    Returns: samples (n,), 16 kHz.
    """
    level = _compression_level(kbps, _MP3_KBPS)
    return _through(
        audio,
        SAMPLE_RATE_HZ,
        delay=_MP3_DELAY,  # frames under 40 kbit/s have no room for LAME's tag, without which decoders leave it in
        format="MP3",
        subtype="MPEG_LAYER_III",
        bitrate_mode="CONSTANT",
        compression_level=level,
    )


def _compression_level(kbps: float, range_kbps: tuple[float, float]) -> float:
    low, high = range_kbps
    return (high - kbps) / (high - low)


def _through(audio: np.ndarray, rate_hz: int, *, peak: float = 1.0, delay: int = 0, **how: object) -> np.ndarray:
    """`delay`: samples too many at the start where more come out than went in."""
    import soundfile

    coded = io.BytesIO()
    soundfile.write(coded, np.clip(audio, -peak, peak), rate_hz, **how)
    coded.seek(0)
    decoded, _ = soundfile.read(coded, dtype="float32")
    if delay and len(decoded) > len(audio):
        decoded = decoded[delay:]
    # Some codecs give whole blocks back, and a clip shorter than one may lose its end.
    return np.pad(decoded, (0, max(0, len(audio) - len(decoded))))[: len(audio)]
