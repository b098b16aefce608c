"""Named acoustic channels, to rehearse an adaptation on clean speech: all of them are simulations, and say so.

`parse_channel("gsm,noise10dB")` passes a clip through a GSM codec, then adds noise. A clip's random parts depend on its
key and the channel's name alone, so the same clip always sounds the same.
"""

from __future__ import annotations

import difflib
import hashlib
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import islice

import numpy as np

from audiolora.speech.data.audio import SAMPLE_RATE_HZ, read_audio
from audiolora.speech.data.rows import DataError
from audiolora.speech.sound.codecs import telephone_codec

Pool = Sequence[np.ndarray]

NYQUIST_HZ = SAMPLE_RATE_HZ / 2
SCRAMBLER_CARRIER_HZ = 3400.0
SSB_SNR_DB = 20.0
LOWPASS_SNR_DB = 30.0
_BABBLE_LANGUAGES = ("ru", "es", "it", "fr")
_BABBLE_VOICES = 3

CHANNELS: dict[str, str] = {
    "clean": "the clip as it is",
    "invert": "voice scrambler: the spectrum inverted about a 3.4 kHz carrier",
    "ssb+500Hz": "SSB radio mistuned by 500 Hz (any ±Hz), with noise at 20 dB SNR",
    "rate1.8": "played 1.8 times too fast (any factor), as with a wrong sample rate in the header",
    "gsm": "GSM 06.10 full-rate codec at 8 kHz",
    "mulaw": "8-bit mu-law companding",
    "mulaw4": "mu-law companding at 4 bits (2 to 16)",
    "lowpass1000": "nothing above 1000 Hz (any frequency), with noise at 30 dB SNR",
    "noise10dB": "white noise at 10 dB SNR (any level)",
    "babble5dB": "three other talkers, real recordings, at 5 dB SNR (any level)",
}
"""Name, or an example of it where it holds a number -> one line of help."""


@dataclass(frozen=True)
class Channel:
    """A simulated acoustic channel; make one with `parse_channel`.

    Args:
        spec: its name, in canonical spelling: what makes its random parts, and what to write down.
        description: one sentence, which says that it is simulated.
        stages: kind and number of each effect, in order.
        babble_pool: where `babble` takes its talkers from, see `parse_channel`.

    >>> parse_channel("clean").apply(np.ones(4, dtype=np.float32), key="clip-1")
    array([1., 1., 1., 1.], dtype=float32)
    """

    spec: str
    description: str
    stages: tuple[tuple[str, float], ...] = field(repr=False)
    babble_pool: Pool | None = field(default=None, repr=False, compare=False)

    @property
    def stretch(self) -> float:
        """How many times as long a clip lasts after it: more than 1 where it is slowed down."""
        return math.prod(
            SAMPLE_RATE_HZ / round(SAMPLE_RATE_HZ * number) for kind, number in self.stages if kind == "rate"
        )

    def apply(self, audio: np.ndarray, key: str) -> np.ndarray:
        """Pass a clip through.

        Args:
            audio: samples (n,), float32, 16 kHz, n >= 1.
            key: names the clip, e.g. its id; with `spec` it seeds whatever is random.

        Returns: samples (n,), float32, 16 kHz; the factor of a `rate` divides n.

        Raises:
            ValueError: audio that is not one non-empty row of finite samples.
        """
        if audio.ndim != 1 or audio.size == 0 or not np.isfinite(audio).all():
            raise ValueError(
                f"{key}: a channel takes finite samples (n,), n >= 1, got shape {audio.shape}; see read_audio"
            )
        for place, (kind, number) in enumerate(self.stages):
            digest = hashlib.sha256(f"{key}\0{self.spec}\0{place}".encode()).digest()
            rng = np.random.default_rng(int.from_bytes(digest[:16], "big"))
            pools = _babble_pools(key, self.babble_pool) if kind == "babble" else []
            audio = _KINDS[kind].effect(audio, number, rng, pools).astype(np.float32)
        return audio


def parse_channel(spec: str, *, babble_pool: Pool | None = None) -> Channel:
    """The channel of a name, or of several joined by commas and applied left to right.

    Args:
        spec: see `CHANNELS`.
        babble_pool: clips, each (n,) float32 16 kHz, that `babble` takes its talkers from; by default the
            built-in prompts, fetched on first use, in three languages other than the clip's own (its key begins `it/`).

    Raises:
        DataError: an unknown name, or a number outside what the channel allows.

    >>> parse_channel("gsm,noise10dB").description
    'Simulated channel: GSM 06.10 codec at 8 kHz, then white noise at 10 dB SNR.'
    """
    if babble_pool is not None and (
        len(babble_pool) == 0 or any(np.ndim(clip) != 1 or len(clip) == 0 for clip in babble_pool)
    ):
        raise DataError("babble_pool must hold at least one clip, each of samples (n,), n >= 1")
    stages = tuple(_stage(part.strip()) for part in spec.split(","))
    names = ",".join(_KINDS[kind].name.format(number) for kind, number in stages)
    phrases = ", then ".join(_KINDS[kind].phrase.format(number) for kind, number in stages if kind != "clean")
    description = f"Simulated channel: {phrases}." if phrases else "No channel: the clips as they are."
    return Channel(names, description, stages, babble_pool)


def add_at_snr(audio: np.ndarray, noise: np.ndarray, snr_db: float) -> np.ndarray:
    """`audio` (n,) plus `noise` (n,) scaled so that the ratio of their powers is `snr_db`.

    >>> add_at_snr(np.ones(2), np.array([5.0, -5.0]), snr_db=20.0).round(4).tolist()
    [1.1, 0.9]
    """
    # The floor keeps digital silence finite: it gets noise at -90 dB.
    return audio + noise * np.sqrt(np.mean(audio**2) + 1e-9) / np.sqrt(np.mean(noise**2) + 1e-18) * 10 ** (-snr_db / 20)


def invert_spectrum(audio: np.ndarray, carrier_hz: float = SCRAMBLER_CARRIER_HZ) -> np.ndarray:
    """A tone at f comes out at `carrier_hz` - f: band-pass, product with the carrier, low-pass below it."""
    from scipy.signal import butter

    time_s = np.arange(len(audio)) / SAMPLE_RATE_HZ
    band = butter(8, [200.0, carrier_hz - 200.0], btype="band", fs=SAMPLE_RATE_HZ, output="sos")
    product = _zero_phase(band, audio) * 2 * np.cos(2 * np.pi * carrier_hz * time_s)
    return _zero_phase(butter(8, carrier_hz, btype="low", fs=SAMPLE_RATE_HZ, output="sos"), product)


def shift_frequencies(audio: np.ndarray, shift_hz: float) -> np.ndarray:
    """A tone at f comes out at f + `shift_hz` (Hilbert transform: one side band)."""
    from scipy.signal import hilbert

    turn = np.exp(2j * np.pi * shift_hz * np.arange(len(audio)) / SAMPLE_RATE_HZ)
    return np.real(hilbert(audio) * turn)


def mulaw_codec(audio: np.ndarray, bits: int) -> np.ndarray:
    """Mu-law companding (mu = 255) with 2**bits levels, relative to the clip's peak; comes out with peak 1."""
    scaled = audio / (np.abs(audio).max() + 1e-6)
    steps = 2**bits - 1
    companded = np.sign(scaled) * np.log1p(255 * np.abs(scaled)) / np.log(256)
    quantized = np.round((companded + 1) / 2 * steps) / steps * 2 - 1
    return np.sign(quantized) * (256 ** np.abs(quantized) - 1) / 255


def lowpass(audio: np.ndarray, cutoff_hz: float) -> np.ndarray:
    """Eighth-order Butterworth low-pass, zero phase."""
    from scipy.signal import butter

    return _zero_phase(butter(8, cutoff_hz, btype="low", fs=SAMPLE_RATE_HZ, output="sos"), audio)


def bandpass(audio: np.ndarray, low_hz: float, high_hz: float) -> np.ndarray:
    """Eighth-order Butterworth band-pass, zero phase."""
    from scipy.signal import butter

    return _zero_phase(butter(4, [low_hz, high_hz], btype="band", fs=SAMPLE_RATE_HZ, output="sos"), audio)


def change_rate(audio: np.ndarray, factor: float) -> np.ndarray:
    """`factor` times as fast, pitch and all."""
    import librosa

    return librosa.resample(audio, orig_sr=round(SAMPLE_RATE_HZ * factor), target_sr=SAMPLE_RATE_HZ)


def babble(n_samples: int, rng: np.random.Generator, pools: Sequence[Pool]) -> np.ndarray:
    """Three talkers at equal power, (n_samples,); talker i strings together clips of `pools[i mod len(pools)]`."""
    mixed = np.zeros(n_samples, dtype=np.float32)
    for voice in range(_BABBLE_VOICES):
        pool, clips, length = pools[voice % len(pools)], [], 0
        while length < n_samples + SAMPLE_RATE_HZ:
            clips.append(pool[int(rng.integers(len(pool)))])
            length += len(clips[-1])
        start = rng.integers(length - n_samples)
        talk = np.concatenate(clips)[start : start + n_samples]
        mixed += talk / (np.sqrt(np.mean(talk**2)) + 1e-6)
    return mixed


def _zero_phase(sos: np.ndarray, audio: np.ndarray) -> np.ndarray:
    from scipy.signal import sosfiltfilt

    # SciPy's own edge padding; clips of a few samples have less to pad with.
    return sosfiltfilt(sos, audio, padlen=min(3 * (2 * len(sos) + 1), len(audio) - 1))


@cache
def _prompt_pool(language: str) -> tuple[np.ndarray, ...]:
    from audiolora.speech.data.prompts import load_prompts

    clips = (read_audio(utterance.audio, name=utterance.where) for utterance in load_prompts(language))
    spoken = (clip for clip in clips if 1.5 * SAMPLE_RATE_HZ < len(clip) < 8 * SAMPLE_RATE_HZ)
    return tuple(islice(spoken, 120))


def _babble_pools(key: str, pool: Pool | None) -> list[Pool]:
    if pool is not None:
        return [pool]
    others = [language for language in _BABBLE_LANGUAGES if not key.startswith(f"{language}/")]
    return [_prompt_pool(language) for language in others[:_BABBLE_VOICES]]


def _white(audio: np.ndarray, rng: np.random.Generator, snr_db: float) -> np.ndarray:
    return add_at_snr(audio, rng.standard_normal(len(audio)).astype(np.float32), snr_db)


@dataclass(frozen=True)
class _Kind:
    """One kind of effect; `name` and `phrase` are formats of its number, `pattern` finds it in a spec."""

    pattern: str
    name: str
    phrase: str
    effect: Callable[[np.ndarray, float, np.random.Generator, Sequence[Pool]], np.ndarray]
    limits: tuple[float, float] = (-np.inf, np.inf)  # what keeps the effect meaningful, and its filters stable
    default: float = np.nan


_NUMBER = r"(\d+(?:\.\d+)?)"
_SIGNED = r"([+-]\d+(?:\.\d+)?)"
_LEVEL = r"(-?\d+(?:\.\d+)?)"
_KINDS = {
    "clean": _Kind("clean", "clean", "the clip as it is", lambda audio, x, rng, pools: audio),
    "invert": _Kind(
        "invert",
        "invert",
        f"voice scrambler, spectrum inverted about a {SCRAMBLER_CARRIER_HZ:g} Hz carrier",
        lambda audio, x, rng, pools: invert_spectrum(audio),
    ),
    "ssb": _Kind(
        rf"ssb{_SIGNED}hz",
        "ssb{:+g}Hz",
        f"SSB radio mistuned by {{:+g}} Hz, with noise at {SSB_SNR_DB:g} dB SNR",
        lambda audio, x, rng, pools: _white(shift_frequencies(audio, x), rng, SSB_SNR_DB),
        limits=(1 - NYQUIST_HZ, NYQUIST_HZ - 1),
    ),
    "rate": _Kind(
        f"rate{_NUMBER}",
        "rate{:g}",
        "played {:g} times too fast, as with a wrong sample rate",
        lambda audio, x, rng, pools: change_rate(audio, x),
        limits=(0.25, 4.0),
    ),
    "gsm": _Kind(
        "gsm", "gsm", "GSM 06.10 codec at 8 kHz", lambda audio, x, rng, pools: telephone_codec(audio, "GSM610")
    ),
    "mulaw": _Kind(
        r"mulaw(\d+)?",
        "mulaw{:g}",
        "mu-law companding at {:g} bits",
        lambda audio, x, rng, pools: mulaw_codec(audio, int(x)),
        limits=(2, 16),
        default=8,
    ),
    "lowpass": _Kind(
        f"lowpass{_NUMBER}(?:hz)?",
        "lowpass{:g}",
        f"nothing above {{:g}} Hz, with noise at {LOWPASS_SNR_DB:g} dB SNR",
        lambda audio, x, rng, pools: _white(lowpass(audio, x), rng, LOWPASS_SNR_DB),
        limits=(50.0, NYQUIST_HZ - 100),
    ),
    "noise": _Kind(
        f"noise{_LEVEL}db",
        "noise{:g}dB",
        "white noise at {:g} dB SNR",
        lambda audio, x, rng, pools: _white(audio, rng, x),
        limits=(-60.0, 100.0),
    ),
    "babble": _Kind(
        f"babble{_LEVEL}db",
        "babble{:g}dB",
        "three other talkers (real recordings) at {:g} dB SNR",
        lambda audio, x, rng, pools: add_at_snr(audio, babble(len(audio), rng, pools), x),
        limits=(-60.0, 100.0),
    ),
}


def _stage(part: str) -> tuple[str, float]:
    """Kind and number of one channel."""
    for kind, traits in _KINDS.items():
        match = re.fullmatch(traits.pattern, part, flags=re.IGNORECASE)
        if match is None:
            continue
        written = match.group(1) if match.groups() else None
        number = float(written) if written is not None else traits.default
        low, high = traits.limits
        if written is not None and not low <= number <= high:
            raise DataError(f"channel {part!r}: the number must be from {low:g} to {high:g}, got {number:g}")
        return kind, number
    close = difflib.get_close_matches(part.lower(), CHANNELS, n=1, cutoff=0.5)
    raise DataError(
        f"unknown channel {part!r}{f'; did you mean {close[0]!r}?' if close else '.'} There are {', '.join(CHANNELS)}; "
        "join several with commas, e.g. gsm,noise10dB"
    )
