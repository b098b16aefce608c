"""Rooms: SciPy's convolution, level and timing, and the reverberation that a simulated room measures."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.signal
import soundfile

from audiolora.speech.data.audio import AudioError
from audiolora.speech.sound.rooms import measured_response, reverberate, simulated_response

RATE_HZ = 16_000


def decaying(n_samples: int, rt60_s: float, direct: int = 0) -> np.ndarray:
    """A response with a direct sound and a tail of noise that dies away by 60 dB in rt60_s."""
    tail = 0.2 * np.random.default_rng(0).standard_normal(n_samples)
    tail *= 10 ** (-3 * np.arange(n_samples) / (rt60_s * RATE_HZ))
    return np.concatenate([np.zeros(direct), [1.0], tail]).astype(np.float32)


def rt60_of(response: np.ndarray) -> float:
    """Schroeder's backward integration, from -5 to -25 dB, times three (ISO 3382's T20)."""
    left = np.cumsum(response[::-1].astype(float) ** 2)[::-1]
    decay_db = 10 * np.log10(left / left[0])
    slope, _ = np.polyfit(np.arange(len(left))[mask := (decay_db < -5) & (decay_db > -25)], decay_db[mask], 1)
    return -60 / slope / RATE_HZ


@pytest.mark.parametrize("direct", [0, 37, 500])
def test_a_room_is_a_convolution_as_loud_and_on_time(direct):
    audio = np.random.default_rng(1).standard_normal(4000).astype(np.float32)
    response = decaying(2000, 0.2, direct)
    out = reverberate(audio, response)
    convolved = scipy.signal.convolve(audio.astype(float), response.astype(float), method="direct")
    expected = convolved[direct : direct + len(audio)]
    expected *= np.sqrt(np.mean(audio.astype(float) ** 2) / np.mean(expected**2))
    np.testing.assert_allclose(out, expected, atol=1e-4)
    lag = scipy.signal.correlate(out, audio).argmax() - (len(audio) - 1)
    assert lag == 0
    assert np.mean(out**2) == pytest.approx(np.mean(audio**2), rel=1e-4)


def test_silence_stays_silent():
    assert not reverberate(np.zeros(100, np.float32), decaying(50, 0.1)).any()


def test_a_measured_response_is_read_at_the_clips_rate_without_its_end(tmp_path):
    response = decaying(16_000, 0.2)
    path = tmp_path / "room.wav"
    soundfile.write(path, np.concatenate([response, np.zeros(50_000, np.float32)]), RATE_HZ, subtype="FLOAT")
    read = measured_response(path)
    np.testing.assert_array_equal(read, response[: len(read)])
    assert np.sum(response[len(read) :].astype(float) ** 2) <= 1e-6 * np.sum(response.astype(float) ** 2)
    assert len(read) < 4000


def test_a_response_of_silence_is_named(tmp_path):
    path = tmp_path / "silent.wav"
    soundfile.write(path, np.zeros(100), RATE_HZ)
    with pytest.raises(AudioError, match=r"silent.wav: an impulse response of digital silence"):
        measured_response(path)


def test_a_simulated_room_dies_away_as_asked():
    pytest.importorskip("pyroomacoustics", reason='needs pyroomacoustics: make test-augment, or "audiolora[augment]"')
    for index, rt60_s in ((0, 0.2), (1, 0.2), (2, 0.35), (3, 0.35)):
        response = simulated_response(index, rt60_s, rt60_s)
        assert response.dtype == np.float32 and np.isfinite(response).all()
        # Sabine's formula holds for a diffuse field, which a shoebox is not quite
        assert rt60_of(response[np.abs(response).argmax() :]) == pytest.approx(rt60_s, rel=0.35)


def test_simulated_rooms_are_the_same_each_time_and_differ_from_each_other():
    pytest.importorskip("pyroomacoustics", reason='needs pyroomacoustics: make test-augment, or "audiolora[augment]"')
    rooms = [simulated_response(index, 0.15, 0.25) for index in (0, 1, 0)]
    np.testing.assert_array_equal(rooms[0], rooms[2])
    assert len(rooms[0]) != len(rooms[1])
