"""Sound inside a page: a clip as a data URI that every browser plays."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np

Codec = Literal["flac", "mp3"]
_MEDIA_TYPES: dict[str, str] = {"flac": "audio/flac", "mp3": "audio/mpeg"}

# 16 kHz FLAC takes 20 kB/s for speech and 32 kB/s for noise, a third more in base64: three minutes stay below 8 MB.
LOSSLESS_LIMIT_S = 180.0


def choose_codec(total_duration_s: float) -> Codec:
    """FLAC (lossless) while all players of a page together last at most `LOSSLESS_LIMIT_S`, else MP3.

    Example:
        >>> choose_codec(60.0), choose_codec(1200.0)
        ('flac', 'mp3')
    """
    return "flac" if total_duration_s <= LOSSLESS_LIMIT_S else "mp3"


def audio_data_uri(audio: np.ndarray, sample_rate_hz: int, *, codec: Codec = "flac") -> str:
    """A clip as a `data:` URI for an <audio> element.

    Args:
        audio: (L,) float, full scale ±1; a louder clip is scaled down to full scale rather than clipped.
        sample_rate_hz: samples a second.
        codec: "flac" keeps 16 bits a sample exactly; "mp3" is about a fifth of the size.

    Returns:
        `data:audio/…;base64,…`

    Raises:
        ValueError: the clip is not one channel, is empty, or holds NaN or infinity.

    Example:
        >>> import numpy as np
        >>> audio_data_uri(np.zeros(1600, np.float32), 16_000)[:22]
        'data:audio/flac;base64'
    """
    import numpy as np
    import soundfile

    check_audio("audio", audio)
    peak = max(1.0, float(np.abs(audio).max()))
    buffer = io.BytesIO()
    subtype = "PCM_16" if codec == "flac" else "MPEG_LAYER_III"
    soundfile.write(buffer, audio / np.float32(peak), sample_rate_hz, format=codec.upper(), subtype=subtype)
    return f"data:{_MEDIA_TYPES[codec]};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def check_audio(name: str, audio: np.ndarray) -> None:
    """Raise ValueError unless `audio` is (L,) with L ≥ 1 and finite; `name` says whose it is."""
    import numpy as np

    if audio.ndim != 1 or audio.size == 0:
        raise ValueError(f"{name}: audio must be one channel of at least one sample, got shape {audio.shape}")
    bad = np.flatnonzero(~np.isfinite(audio))
    if bad.size:
        raise ValueError(f"{name}: audio must be finite, got {audio[bad[0]]} at sample {bad[0]} ({bad.size} in all)")
