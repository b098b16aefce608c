"""Each effect of an augmentation against a measure of its own, by NumPy and SciPy."""

from __future__ import annotations

import pickle

import librosa
import numpy as np
import pytest
import scipy.signal
import soundfile

from audiolora.speech.data.audio import AudioError
from audiolora.speech.sound import effects
from audiolora.speech.sound.augmentation import keyed_generator, parse_augmentation
from audiolora.speech.sound.effects import change_speed

RATE_HZ = 16_000
CLIP = (0.1 * np.random.default_rng(0).standard_normal(RATE_HZ)).astype(np.float32)


def snr_db(clean: np.ndarray, noisy: np.ndarray) -> float:
    difference = noisy.astype(float) - clean.astype(float)
    return float(10 * np.log10(np.mean(clean.astype(float) ** 2) / np.mean(difference**2)))


def band_db(audio: np.ndarray, low_hz: float, high_hz: float) -> float:
    """Power between two frequencies, as a share of all."""
    frequencies, power = scipy.signal.welch(audio, RATE_HZ, nperseg=2048)
    return float(10 * np.log10(power[(frequencies >= low_hz) & (frequencies <= high_hz)].sum() / power.sum() + 1e-20))


def tone(frequency_hz: float, seconds: float = 1.0) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * frequency_hz * np.arange(round(seconds * RATE_HZ)) / RATE_HZ)).astype(np.float32)


def peak_hz(audio: np.ndarray) -> float:
    spectrum = np.abs(np.fft.rfft(audio * np.hanning(len(audio)), n=1 << 18))
    return float(np.fft.rfftfreq(1 << 18, 1 / RATE_HZ)[spectrum.argmax()])


@pytest.fixture(scope="module")
def noises(tmp_path_factory):
    """A hum shorter than a clip, and a longer one at another rate and in stereo."""
    folder = tmp_path_factory.mktemp("noises")
    time_s = np.arange(4000) / RATE_HZ
    soundfile.write(folder / "hum.wav", 0.5 * np.sin(2 * np.pi * 100 * time_s), RATE_HZ)
    (folder / "deeper").mkdir()
    time_s = np.arange(4 * 48_000) / 48_000
    tones = [0.2 * np.sin(2 * np.pi * hz * time_s) for hz in (1000, 1000)]
    soundfile.write(folder / "deeper" / "whistle.flac", np.stack(tones, axis=1), 48_000)
    return folder


def test_white_noise_comes_at_snrs_that_fill_the_range():
    augmentation = parse_augmentation("noise5-20dB@1")
    noisy = [augmentation.apply(CLIP, f"0/0/{clip}") for clip in range(60)]
    measured = [snr_db(CLIP, audio) for audio in noisy]
    assert 5 - 0.01 < min(measured) < 7 and 18 < max(measured) < 20 + 0.01
    added = noisy[0] - CLIP
    assert band_db(added, 0, 2000) == pytest.approx(10 * np.log10(2 / 8), abs=0.5)  # white: by the band's width
    assert abs(np.corrcoef(added, noisy[1] - CLIP)[0, 1]) < 0.05


def test_recorded_noise_comes_at_its_snr_from_all_files(noises):
    augmentation = parse_augmentation("noise10dB@1", noise_folder=noises)
    added = [augmentation.apply(CLIP, f"0/0/{clip}") - CLIP for clip in range(40)]
    assert all(snr_db(CLIP, CLIP + noise) == pytest.approx(10, abs=0.05) for noise in added)
    heard = [round(peak_hz(noise)) for noise in added]
    assert set(heard) == {100, 1000} and 8 < heard.count(100) < 32
    whistles = [noise for noise, hz in zip(added, heard, strict=True) if hz == 1000]
    assert len({round(float(noise[0]), 4) for noise in whistles}) > 3  # from different places


def test_silent_noise_is_told(tmp_path):
    soundfile.write(tmp_path / "nothing.wav", np.zeros(RATE_HZ), RATE_HZ)
    with pytest.raises(AudioError, match=r"digital silence, the last of .*nothing.wav; remove silent recordings"):
        parse_augmentation("noise10dB@1", noise_folder=tmp_path).apply(CLIP, "a")


def test_noise_that_is_no_audio_is_told(tmp_path):
    (tmp_path / "text.wav").write_text("not audio")
    with pytest.raises(AudioError, match=r"text.wav: noise that cannot be read"):
        parse_augmentation("noise10dB@1", noise_folder=tmp_path).apply(CLIP, "a")


def test_a_silence_between_recordings_is_passed_over(tmp_path):
    long = np.concatenate([np.zeros(20 * RATE_HZ), 0.1 * np.random.default_rng(0).standard_normal(20 * RATE_HZ)])
    soundfile.write(tmp_path / "half.wav", long, RATE_HZ)
    augmentation = parse_augmentation("noise10dB@1", noise_folder=tmp_path)
    assert all(snr_db(CLIP, augmentation.apply(CLIP, str(clip))) == pytest.approx(10, abs=0.1) for clip in range(10))


def test_measured_rooms_are_drawn_from_the_folder(tmp_path):
    for index, delay in enumerate((400, 900)):
        response = np.zeros(1000)
        response[[0, delay]] = 1.0, 0.5
        soundfile.write(tmp_path / f"{index}.wav", response, RATE_HZ, subtype="FLOAT")
    augmentation = parse_augmentation("rir@1", rir_folder=tmp_path)
    delays = []
    for clip in range(20):
        echoes = scipy.signal.correlate(augmentation.apply(CLIP, str(clip)), CLIP, method="fft")[len(CLIP) - 1 :]
        delays.append(int(echoes[100:].argmax()) + 100)
    assert set(delays) == {400, 900}


def test_simulated_rooms_are_drawn_and_sent_along(monkeypatch):
    """Two rooms instead of fifty, which is what takes seconds."""
    pytest.importorskip("pyroomacoustics", reason='needs pyroomacoustics: make test-augment, or "audiolora[augment]"')
    monkeypatch.setattr("audiolora.speech.sound.rooms.ROOMS", 2)
    monkeypatch.setattr("audiolora.speech.sound.effects.ROOMS", 2)
    augmentation = parse_augmentation("rir0.15-0.25s@1")
    augmentation.prepare()
    sent = pickle.loads(pickle.dumps(augmentation))
    monkeypatch.setattr("audiolora.speech.sound.effects.simulate_rooms", lambda *args: pytest.fail("simulated again"))
    heard = [augmentation.apply(CLIP, str(clip)) for clip in range(12)]
    assert len({audio.tobytes() for audio in heard}) == 2
    assert all(np.std(audio) == pytest.approx(np.std(CLIP), rel=1e-3) for audio in heard)
    np.testing.assert_array_equal(sent.apply(CLIP, "0"), heard[0])


def test_limits_of_the_band():
    out = parse_augmentation("bandpass300-3400Hz@1").apply(CLIP, "a")
    assert band_db(out, 0, 200) < -30 and band_db(out, 4000, 8000) < -30 and band_db(out, 300, 3400) > -0.3
    for clip in range(5):
        out = parse_augmentation("lowpass1000-2000Hz@1").apply(CLIP, str(clip))
        assert band_db(out, 2600, 8000) < -25 and band_db(out, 0, 1000) > -4


@pytest.mark.parametrize("level_db", [-20.0, 0.0, 6.0])
def test_gain(level_db):
    out = parse_augmentation(f"gain{level_db:g}dB").apply(CLIP, "a")
    np.testing.assert_allclose(out, CLIP * 10 ** (level_db / 20), rtol=1e-6)


def test_three_speeds_with_the_pitch():
    augmentation, clip = parse_augmentation("speed0.1"), tone(1000)
    heard = [augmentation.apply(clip, str(index)) for index in range(60)]
    lengths = [len(audio) for audio in heard]
    assert set(lengths) == {17_778, 16_000, 14_546}  # ceil(16000 / 0.9), and / 1.1
    assert all(lengths.count(length) > 9 for length in set(lengths))
    for audio in heard[:6]:
        assert peak_hz(audio) == pytest.approx(1000 * 16_000 / len(audio), rel=1e-3)


def test_a_clip_that_would_be_too_long_for_whisper_is_left_at_its_speed():
    clip = np.ones(29 * RATE_HZ, np.float32)
    lengths = {len(change_speed(clip, 0.25, keyed_generator(str(index)))) for index in range(20)}
    assert lengths == {29 * RATE_HZ, round(29 * RATE_HZ / 1.25)}


def test_every_effect_gives_finite_samples_of_any_length():
    spec = "speed0.1,noise,gain,bandpass,lowpass,gsm,mulaw,alaw,opus,mp3"
    for name in spec.split(","):
        augmentation = parse_augmentation(f"{name}@1")
        for n_samples in (1, 2, 7, 400):
            out = augmentation.apply(CLIP[:n_samples], "a")
            assert out.dtype == np.float32 and np.isfinite(out).all() and len(out) > 0
            assert name == "speed0.1" or len(out) == n_samples


@pytest.mark.parametrize("subtype", ["GSM610", "G721_32"])
def test_noise_in_files_that_cannot_be_sought_in(tmp_path, subtype):
    """Telephone recordings; a whole file is a stretch of noise and a later one is what lies there."""
    noise = (0.2 * np.random.default_rng(0).standard_normal(16_000)).astype(np.float32)
    soundfile.write(tmp_path / "line.wav", noise, 8000, subtype=subtype)
    whole, _ = soundfile.read(tmp_path / "line.wav", dtype="float32")
    found = effects._read_stretch(tmp_path / "line.wav", 8000, 0.75)
    first = int(0.75 * (len(whole) - 4000 + 1))
    expected = librosa.resample(whole[first : first + 4000], orig_sr=8000, target_sr=16_000)
    np.testing.assert_allclose(found, expected[:8000], atol=1e-6)
