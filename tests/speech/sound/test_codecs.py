"""Codecs against what they are: G.711's formula, bit rates, the band that is left, and no delay."""

from __future__ import annotations

import io

import numpy as np
import pytest
import scipy.signal
import soundfile

from audiolora.speech.sound import codecs
from audiolora.speech.sound.codecs import mp3_codec, opus_codec, telephone_codec

RATE_HZ = 16_000


def speech_like(seconds: float, high_hz: float = 3000.0) -> np.ndarray:
    """Noise in a band that every codec keeps."""
    noise = np.random.default_rng(0).standard_normal(round(seconds * RATE_HZ))
    band = scipy.signal.butter(4, [200, high_hz], btype="band", fs=RATE_HZ, output="sos")
    return (0.3 * scipy.signal.sosfilt(band, noise)).astype(np.float32)


def delay(audio: np.ndarray, out: np.ndarray) -> int:
    return int(scipy.signal.correlate(out, audio, method="fft").argmax()) - (len(audio) - 1)


def g711_mulaw(samples: np.ndarray) -> np.ndarray:
    """ITU-T G.711 in floating point: eight segments, each twice as coarse as the one before; full scale 8159."""
    magnitude = np.minimum(np.abs(samples) * 32768 / 4, 8158)
    segment = np.clip(np.floor(np.log2(magnitude + 33)) - 5, 0, 7)
    step = 2 ** (segment + 1)
    floor = 33 * 2**segment - 33
    return np.sign(samples) * (floor + (np.floor((magnitude - floor) / step) + 0.5) * step) * 4 / 32768


def test_mulaw_is_g711(monkeypatch):
    """At the telephone's own rate, with the resampling left out: within half a step of the formula's value."""
    samples = np.concatenate([speech_like(1.0), np.linspace(-1, 1, 1001, dtype=np.float32)])
    decoded = codecs._through(samples, 8000, format="WAV", subtype="ULAW")
    expected = g711_mulaw(samples)
    coarse = np.maximum(np.abs(expected) / 16, 2**-12)  # a step of the value's segment
    assert np.abs(decoded - expected).max() < 0.04 and (np.abs(decoded - expected) <= coarse).all()
    assert len(np.unique(decoded)) <= 256


@pytest.mark.parametrize("subtype", ["GSM610", "ULAW", "ALAW"])
def test_the_telephone_keeps_what_lies_below_4_khz(subtype):
    time_s = np.arange(RATE_HZ) / RATE_HZ
    for frequency_hz, kept in ((1000, True), (5500, False)):
        tone = (0.3 * np.sin(2 * np.pi * frequency_hz * time_s)).astype(np.float32)
        out = telephone_codec(tone, subtype)
        # GSM 06.10 predicts speech: a tone is not its best case
        assert (np.std(out) > 0.8 * np.std(tone)) if kept else (np.std(out) < 0.1 * np.std(tone))


@pytest.mark.parametrize(
    "codec",
    [
        lambda audio: telephone_codec(audio, "GSM610"),
        lambda audio: telephone_codec(audio, "ULAW"),
        lambda audio: telephone_codec(audio, "ALAW"),
        lambda audio: opus_codec(audio, 24.0),
        lambda audio: mp3_codec(audio, 32.0),
    ],
    ids=["gsm", "mulaw", "alaw", "opus", "mp3"],
)
def test_no_delay_and_the_same_length(codec):
    audio = speech_like(1.0)
    out = codec(audio)
    assert out.shape == audio.shape and delay(audio, out) == 0
    assert 0.5 < np.std(out) / np.std(audio) < 1.5
    for n_samples in (1, 2, 159, 161, 1000):
        short = codec(audio[:n_samples])
        assert short.shape == (n_samples,) and np.isfinite(short).all()
    assert np.isfinite(codec(10 * audio)).all()  # over full scale


@pytest.mark.parametrize(("codec", "slack"), [(opus_codec, 0.35), (mp3_codec, 0.1)])
@pytest.mark.parametrize("kbps", [16.0, 32.0, 64.0])
def test_the_bit_rate_is_the_one_asked(codec, slack, kbps, monkeypatch):
    """Bytes that the coder wrote, over the duration."""
    written, write = [], soundfile.write

    def counting(file: io.BytesIO, *args: object, **kwargs: object) -> None:
        write(file, *args, **kwargs)
        written.append(file.tell())

    monkeypatch.setattr(soundfile, "write", counting)
    codec(speech_like(4.0), kbps)
    assert written[0] * 8 / 4 / 1000 == pytest.approx(kbps, rel=slack)


@pytest.mark.parametrize("codec", [opus_codec, mp3_codec])
def test_fewer_bits_lose_more(codec):
    audio = speech_like(2.0, high_hz=7000.0)
    errors = [np.mean((codec(audio, kbps) - audio) ** 2) / np.mean(audio**2) for kbps in (16.0, 32.0, 96.0)]
    assert errors[0] > errors[1] > errors[2] and errors[2] < 0.1


def test_gsm_is_what_a_wav_file_of_it_holds(tmp_path):
    """The codec in memory against a file on disk, read back by SciPy's and libsndfile's own resampling chain."""
    audio = speech_like(1.0)
    narrow = np.clip(scipy.signal.resample_poly(audio, 1, 2), -0.99, 0.99)
    soundfile.write(tmp_path / "gsm.wav", narrow, 8000, subtype="GSM610")
    assert (tmp_path / "gsm.wav").stat().st_size < 2000  # 13 kbit/s
    decoded, _ = soundfile.read(tmp_path / "gsm.wav", dtype="float32")
    expected = scipy.signal.resample_poly(decoded[:8000], 2, 1)
    np.testing.assert_allclose(telephone_codec(audio, "GSM610"), expected, atol=1e-6)
