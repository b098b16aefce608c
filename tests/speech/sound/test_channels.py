"""Each channel against a fact of its physics, measured with NumPy and SciPy."""

import pickle

import numpy as np
import pytest
import scipy.signal
from hypothesis import given, settings
from hypothesis import strategies as st

from audiolora.speech.data.manifests import DataError
from audiolora.speech.sound import channels
from audiolora.speech.sound.channels import CHANNELS, add_at_snr, parse_channel

RATE_HZ = 16000


def tone(frequency_hz: float, seconds: float = 1.0, level: float = 0.3) -> np.ndarray:
    time_s = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
    return (level * np.sin(2 * np.pi * frequency_hz * time_s)).astype(np.float32)


def noise(length: int = RATE_HZ, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(length)).astype(np.float32)


def peak_hz(audio: np.ndarray) -> float:
    spectrum = np.abs(np.fft.rfft(audio * np.hanning(len(audio))))
    return float(np.fft.rfftfreq(len(audio), 1 / RATE_HZ)[spectrum.argmax()])


def level_db(audio: np.ndarray, frequency_hz: float) -> float:
    """Power in ±20 Hz around a frequency, as a share of all."""
    frequencies, power = scipy.signal.periodogram(audio, RATE_HZ, window="hann")
    return float(10 * np.log10(power[np.abs(frequencies - frequency_hz) < 20].sum() / power.sum() + 1e-20))


def snr_db(clean: np.ndarray, noisy: np.ndarray) -> float:
    return float(10 * np.log10(np.mean(clean.astype(float) ** 2) / np.mean((noisy - clean.astype(float)) ** 2)))


POOL = [noise(12345, seed=1), noise(4000, seed=2)]


@pytest.mark.parametrize("frequency_hz", [500, 1000, 1700, 2400, 3000])
def test_inversion_mirrors_a_tone_about_half_the_carrier(frequency_hz):
    out = parse_channel("invert").apply(tone(frequency_hz), key="a")
    assert peak_hz(out) == pytest.approx(3400 - frequency_hz, abs=1)
    assert level_db(out, 3400 - frequency_hz) > -1
    if 1000 <= frequency_hz <= 2400:  # away from the filters' edges, at its own level
        middle = slice(4000, -4000)
        assert np.std(out[middle]) == pytest.approx(np.std(tone(frequency_hz)[middle]), rel=0.01)


def test_inverting_twice_gives_the_band_back():
    channel = parse_channel("invert,invert")
    assert peak_hz(channel.apply(tone(1000), key="a")) == pytest.approx(1000, abs=1)


@pytest.mark.parametrize("shift_hz", [500, -300, 1250.5])
def test_ssb_shifts_a_tone_and_adds_noise_at_20_db(shift_hz):
    clean = tone(1000)
    out = parse_channel(f"ssb{shift_hz:+g}Hz").apply(clean, key="a")
    assert peak_hz(out) == pytest.approx(1000 + shift_hz, abs=1)
    assert level_db(out, 1000 - shift_hz) < -20  # one side band only
    time_s = np.arange(len(clean)) / RATE_HZ  # the sine's own shift in closed form: its Hilbert pair is a cosine
    shifted = 0.3 * np.sin(2 * np.pi * (1000 + shift_hz) * time_s)
    assert snr_db(shifted, out) == pytest.approx(20, abs=0.3)


@pytest.mark.parametrize("factor", [1.8, 1.5, 0.5])
def test_rate_shortens_and_raises_by_its_factor(factor):
    out = parse_channel(f"rate{factor}").apply(tone(1000, 2.0), key="a")
    assert len(out) == pytest.approx(2 * RATE_HZ / factor, abs=1)
    assert peak_hz(out) == pytest.approx(1000 * factor, abs=2)


@pytest.mark.parametrize("snr", [-5, 0, 10, 22.5])
@pytest.mark.parametrize("kind", ["noise", "babble"])
def test_the_snr_measured_is_the_one_asked(kind, snr):
    clean = tone(700)
    out = parse_channel(f"{kind}{snr}dB", babble_pool=POOL).apply(clean, key="a")
    assert snr_db(clean, out) == pytest.approx(snr, abs=0.01)


def test_white_noise_is_white():
    added = parse_channel("noise10dB").apply(tone(700, 4.0), key="a") - tone(700, 4.0)
    assert scipy.stats.kstest(added / added.std(), "norm").pvalue > 1e-3
    _, power = scipy.signal.welch(added, RATE_HZ, nperseg=256)
    assert power[1:-1].max() / power[1:-1].min() < 2.5


def test_babble_is_three_voices_at_equal_power():
    tones = [tone(frequency, 2.0, level) for frequency, level in ((300, 0.9), (1100, 0.1), (2500, 0.02))]
    mixed = channels.babble(RATE_HZ, np.random.default_rng(0), [[clip] for clip in tones])
    for frequency in (300, 1100, 2500):
        assert level_db(mixed, frequency) == pytest.approx(10 * np.log10(1 / 3), abs=0.3)


def test_babble_talks_in_other_languages_than_the_clip(monkeypatch):
    asked = []
    monkeypatch.setattr(channels, "_prompt_pool", lambda language: asked.append(language) or POOL)
    parse_channel("babble5dB").apply(noise(), key="it/activated")
    parse_channel("babble5dB").apply(noise(), key="en/activated")
    assert asked == ["ru", "es", "fr", "ru", "es", "it"]


@settings(max_examples=25, deadline=None)
@given(length=st.integers(1, 3000))
def test_gsm_keeps_the_length(length):
    assert len(parse_channel("gsm").apply(noise(length), key="a")) == length


def test_gsm_keeps_the_telephone_band_only():
    channel = parse_channel("gsm")
    assert peak_hz(channel.apply(tone(800), key="a")) == pytest.approx(800, abs=2)
    _, power = scipy.signal.welch(channel.apply(noise(4 * RATE_HZ), key="a"), RATE_HZ, nperseg=512)
    assert power[150:].sum() < 1e-2 * power.sum()  # above 4.7 kHz


@pytest.mark.parametrize("spec, bits", [("mulaw", 8), ("mulaw8", 8), ("mulaw4", 4), ("mulaw2", 2)])
def test_mulaw_leaves_levels_on_the_companding_curve(spec, bits):
    out = parse_channel(spec).apply(noise(), key="a").astype(float)
    companded = np.sign(out) * np.log(1 + 255 * np.abs(out)) / np.log(256)  # ITU-T G.711's continuous law
    steps = (companded + 1) / 2 * (2**bits - 1)
    np.testing.assert_allclose(steps, np.round(steps), atol=1e-3)
    assert len(np.unique(out)) <= 2**bits and np.abs(out).max() == pytest.approx(1)


def test_mulaw_at_16_bits_is_the_clip_at_peak_one():
    clip = tone(440)
    np.testing.assert_allclose(parse_channel("mulaw16").apply(clip, key="a"), clip / np.abs(clip).max(), atol=1e-3)


def test_lowpass_cuts_above_and_keeps_below():
    out = parse_channel("lowpass1000").apply(tone(500) + tone(2000), key="a")
    assert level_db(out, 500) > -0.1
    assert level_db(out, 2000) < -40
    assert snr_db(tone(500), out) == pytest.approx(30, abs=0.5)


def test_clean_is_the_clip():
    np.testing.assert_array_equal(parse_channel("clean").apply(noise(), key="a"), noise())


@pytest.mark.parametrize("spec", [*CHANNELS, "gsm,noise10dB"])
@pytest.mark.parametrize("length", [1, 7, 160, 4001])
def test_every_channel_takes_any_length_and_says_it_is_simulated(spec, length):
    channel = parse_channel(spec, babble_pool=POOL)
    out = channel.apply(noise(length), key="a")
    assert out.dtype == np.float32 and out.ndim == 1 and np.isfinite(out).all()
    assert len(out) == (pytest.approx(length / 1.8, abs=1) if spec == "rate1.8" else length)
    assert channel.spec == {"mulaw": "mulaw8"}.get(spec, spec)
    assert ("imulated" in channel.description) == (spec != "clean") and channel.description.endswith(".")
    assert np.isfinite(channel.apply(np.zeros(length, dtype=np.float32), key="a")).all()  # digital silence


@pytest.mark.parametrize("spec", ["noise10dB", "ssb+500Hz", "lowpass1000", "babble5dB"])
def test_the_same_clip_always_sounds_the_same(spec):
    clip = noise()
    one, same = parse_channel(spec, babble_pool=POOL), pickle.loads(pickle.dumps(parse_channel(spec, babble_pool=POOL)))
    first = one.apply(clip, key="a")
    np.random.seed(1)  # no global state takes part
    np.testing.assert_array_equal(same.apply(clip, key="a"), first)
    assert not np.array_equal(one.apply(clip, key="b"), first)
    np.testing.assert_array_equal(clip, noise())  # the clip itself is left alone


def test_channels_apply_from_left_to_right():
    clip = tone(1000)
    there, back = parse_channel("invert,lowpass1000"), parse_channel("lowpass1000,invert")
    assert level_db(there.apply(clip, key="a"), 2400) < -10 < level_db(back.apply(clip, key="a"), 2400)
    twice = parse_channel("noise10dB,noise10dB")
    second = snr_db(clip, twice.apply(clip, key="a"))
    # Independent draws: 0.1 + 0.1 × 1.1 of the clip's power. The same draw twice would add amplitudes and give 3.8 dB.
    assert second == pytest.approx(-10 * np.log10(0.1 + 0.11), abs=0.2)


def test_names_have_one_spelling():
    assert parse_channel(" GSM , Noise10db,SSB+0500hz,lowpass1000Hz").spec == "gsm,noise10dB,ssb+500Hz,lowpass1000"
    assert parse_channel("gsm,noise10dB").description.startswith(
        "Simulated channel: GSM 06.10 codec at 8 kHz, then white"
    )


@pytest.mark.parametrize(
    "spec, fault",
    [
        ("inverted", "unknown channel 'inverted'; did you mean 'invert'.*There are clean, invert"),
        ("noise10", "did you mean 'noise10dB'"),
        ("gsm,", "unknown channel ''"),
        ("xyzzy", "unknown channel 'xyzzy'. There are"),
        ("mulaw1", "from 2 to 16, got 1"),
        ("rate0", "from 0.25 to 4, got 0"),
        ("lowpass8000", "from 50 to 7900"),
        ("ssb+9000Hz", "got 9000"),
        ("ssb500Hz", "did you mean 'ssb.500Hz'"),
    ],
)
def test_unknown_names_and_numbers(spec, fault):
    with pytest.raises(DataError, match=fault):
        parse_channel(spec)


@pytest.mark.parametrize("audio", [np.zeros(0), np.zeros((2, 9)), np.array([np.nan])])
def test_audio_that_is_no_clip(audio):
    with pytest.raises(ValueError, match="clip-7: a channel takes finite samples"):
        parse_channel("clean").apply(audio, key="clip-7")


@pytest.mark.parametrize("pool", [[], [np.zeros((2, 5))], [np.zeros(0)]])
def test_babble_pools_are_checked(pool):
    with pytest.raises(DataError, match="babble_pool must hold at least one clip"):
        parse_channel("babble5dB", babble_pool=pool)


@settings(max_examples=50, deadline=None)
@given(snr=st.floats(-20, 60), seed=st.integers(0, 100))
def test_add_at_snr(snr, seed):
    clean = np.random.default_rng(seed).standard_normal(500)
    added = np.random.default_rng(seed + 1).standard_normal(500)
    assert snr_db(clean, add_at_snr(clean, added, snr)) == pytest.approx(snr, abs=1e-6)
