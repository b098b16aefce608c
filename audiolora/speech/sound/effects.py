"""What each effect of an augmentation does to samples, by soxr, libsndfile, SciPy and pyroomacoustics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from audiolora.speech.data.audio import MAX_DURATION_S, SAMPLE_RATE_HZ, AudioError
from audiolora.speech.data.audio_file import skip_to
from audiolora.speech.sound.channels import add_at_snr, bandpass, change_rate, lowpass
from audiolora.speech.sound.codecs import mp3_codec, opus_codec, telephone_codec
from audiolora.speech.sound.rooms import ROOMS, measured_response, reverberate, simulate_rooms

_SILENCE = 1e-5  # RMS, -100 dB: a pause between recordings
_TRIES = 20


@dataclass(frozen=True)
class Recordings:
    """What effects take their sound from; folders are listed, and rooms simulated, when first asked for.

    Args:
        noise_folder, rir_folder: see `augmentation.parse_augmentation`.
    """

    noise_folder: Path | None = None
    rir_folder: Path | None = None
    _rooms: dict[tuple[float, float], list[np.ndarray]] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def noises(self) -> list[Path]:
        """Files of noise, sorted."""
        return _audio_below(self.noise_folder)

    @cached_property
    def responses(self) -> list[Path]:
        """Files of impulse responses, sorted."""
        return _audio_below(self.rir_folder)

    def rooms(self, low_s: float, high_s: float) -> list[np.ndarray]:
        """Simulated rooms; kept, and so sent along to worker processes."""
        if (low_s, high_s) not in self._rooms:
            self._rooms[low_s, high_s] = simulate_rooms(low_s, high_s)
        return self._rooms[low_s, high_s]


Apply = Callable[[np.ndarray, float, float, np.random.Generator, Recordings], np.ndarray]


def change_speed(audio: np.ndarray, share: float, draw: np.random.Generator) -> np.ndarray:
    """Played at 1 - share, 1 or 1 + share times its speed, pitch included (Ko et al., Interspeech 2015).

    A clip that would be longer than the 30 s that Whisper takes is left at its speed.
    """
    factor = 1 + share * (int(draw.integers(3)) - 1)
    if factor == 1 or len(audio) / factor > MAX_DURATION_S * SAMPLE_RATE_HZ:
        return audio
    return change_rate(audio, factor)


def add_noise(
    audio: np.ndarray, low_db: float, high_db: float, draw: np.random.Generator, recordings: Recordings
) -> np.ndarray:
    """White noise, or a stretch of a recording, at an SNR from the range."""
    snr_db = draw.uniform(low_db, high_db)
    if recordings.noise_folder is None:
        noise = draw.standard_normal(len(audio), dtype=np.float32)
    else:
        noise = _stretch_of_noise(len(audio), draw, recordings)
    return add_at_snr(audio, noise, snr_db)


def put_into_room(
    audio: np.ndarray, low_s: float, high_s: float, draw: np.random.Generator, recordings: Recordings
) -> np.ndarray:
    """A room from the folder, or one of the simulated ones."""
    if recordings.rir_folder is None:
        response = recordings.rooms(low_s, high_s)[int(draw.integers(ROOMS))]
    else:
        response = measured_response(recordings.responses[int(draw.integers(len(recordings.responses)))])
    return reverberate(audio, response)


SAMPLES: dict[str, Apply] = {
    "speed": lambda audio, low, high, draw, own: change_speed(audio, low, draw),
    "rir": put_into_room,
    "noise": add_noise,
    "gain": lambda audio, low, high, draw, own: audio * 10 ** (draw.uniform(low, high) / 20),
    "bandpass": lambda audio, low, high, draw, own: bandpass(audio, low, high),
    "lowpass": lambda audio, low, high, draw, own: lowpass(audio, draw.uniform(low, high)),
    "gsm": lambda audio, low, high, draw, own: telephone_codec(audio, "GSM610"),
    "mulaw": lambda audio, low, high, draw, own: telephone_codec(audio, "ULAW"),
    "alaw": lambda audio, low, high, draw, own: telephone_codec(audio, "ALAW"),
    "opus": lambda audio, low, high, draw, own: opus_codec(audio, draw.uniform(low, high)),
    "mp3": lambda audio, low, high, draw, own: mp3_codec(audio, draw.uniform(low, high)),
}
"""Name of `augment_spec.EFFECTS` -> what it does: (audio, low, high, draw, recordings) to samples (n,) at 16 kHz;
`speed` alone changes n."""


def _stretch_of_noise(n_samples: int, draw: np.random.Generator, recordings: Recordings) -> np.ndarray:
    """(n_samples,) from anywhere in one of the recordings, repeated where it is shorter; never digital silence."""
    for _ in range(_TRIES):
        path = recordings.noises[int(draw.integers(len(recordings.noises)))]
        noise = _read_stretch(path, n_samples, draw.random())
        if np.sqrt(np.mean(noise**2)) > _SILENCE:
            return np.resize(noise, n_samples)
    raise AudioError(
        f"{recordings.noise_folder}: {_TRIES} stretches of noise drawn one after the other were digital silence, the "
        f"last of {path}; remove silent recordings"
    )


def _read_stretch(path: Path, n_samples: int, place: float) -> np.ndarray:
    """At most n_samples at 16 kHz, mono, `place` in [0, 1) of the way through what can be skipped."""
    import librosa
    import soundfile

    try:
        with soundfile.SoundFile(path) as file:
            wanted = -(-n_samples * file.samplerate // SAMPLE_RATE_HZ)
            first = int(place * max(0, file.frames - wanted + 1))
            if file.seekable():  # wherever libsndfile lands: any stretch will do
                file.seek(first)
            else:  # GSM 06.10, G.721
                skip_to(file, first, str(path))
            samples = file.read(wanted, dtype="float32", always_2d=True).mean(axis=1)
            rate_hz = file.samplerate
    except (RuntimeError, OSError) as error:  # soundfile.LibsndfileError is a RuntimeError
        raise AudioError(f"{path}: noise that cannot be read ({error}); remove it or convert it again") from error
    if len(samples) == 0 or not np.isfinite(samples).all():
        raise AudioError(f"{path}: noise without samples, or with NaN or infinite ones; remove it or export it again")
    if rate_hz != SAMPLE_RATE_HZ:
        samples = librosa.resample(samples, orig_sr=rate_hz, target_sr=SAMPLE_RATE_HZ)
    return samples[:n_samples]


def _audio_below(folder: Path | None) -> list[Path]:
    from audiolora.speech.texts.transcripts import find_audio

    assert folder is not None
    return find_audio([folder])
