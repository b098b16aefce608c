import io
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from audiolora.speech.checks.clip_facts import measure_clip
from audiolora.speech.data.audio import SAMPLE_RATE_HZ, AudioError, duration_s, read_audio
from audiolora.speech.data.sources import Segment


def tone(frequency_hz: float, rate_hz: int, seconds: float) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * frequency_hz * np.arange(round(seconds * rate_hz)) / rate_hz)


def as_wav(samples: np.ndarray, rate_hz: int = SAMPLE_RATE_HZ, subtype: str = "FLOAT", form: str = "WAV") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate_hz, format=form, subtype=subtype)
    return file.getvalue()


def peak_hz(samples: np.ndarray) -> float:
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return float(np.fft.rfftfreq(len(samples), 1 / SAMPLE_RATE_HZ)[spectrum.argmax()])


def test_samples_at_16_khz_come_back_as_they_are(tmp_path):
    samples = np.random.default_rng(0).uniform(-1, 1, 1000).astype(np.float32)
    path = tmp_path / "a.wav"
    path.write_bytes(as_wav(samples))
    for source in (path, str(path), path.read_bytes()):
        read = read_audio(source)
        assert read.dtype == np.float32
        np.testing.assert_array_equal(read, samples)


@pytest.mark.parametrize("rate_hz", [8000, 11025, 22050, 44100, 48000])
def test_other_rates_keep_pitch_and_length(rate_hz):
    read = read_audio(as_wav(tone(1000, rate_hz, 2.0), rate_hz))
    assert abs(len(read) - 2 * SAMPLE_RATE_HZ) <= 1
    assert peak_hz(read) == pytest.approx(1000, abs=1)
    middle = read[4000:-4000]
    assert np.sqrt(np.mean(middle**2)) == pytest.approx(0.5 / np.sqrt(2), rel=1e-2)


def test_resampling_adds_no_sample():
    """30 · 7350 · (16000 / 7350) is a little over 480,000 in floating point."""
    assert len(read_audio(as_wav(tone(1000, 7350, 30.0), 7350), max_duration_s=30.0)) == 30 * SAMPLE_RATE_HZ


@settings(max_examples=20, deadline=None)
@given(channels=st.integers(1, 6), length=st.integers(1, 50), seed=st.integers(0, 1000))
def test_channels_are_averaged(channels, length, seed):
    samples = np.random.default_rng(seed).uniform(-1, 1, (length, channels)).astype(np.float32)
    np.testing.assert_allclose(read_audio(as_wav(samples)), samples.mean(axis=1), atol=1e-6)


@pytest.mark.parametrize("form, subtype", [("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("WAV", "ULAW"), ("AIFF", "PCM_24")])
def test_formats(form, subtype):
    assert peak_hz(read_audio(as_wav(tone(440, SAMPLE_RATE_HZ, 1), subtype=subtype, form=form))) == pytest.approx(
        440, abs=2
    )


def test_missing_file_folder_and_empty_file_are_named(tmp_path):
    (tmp_path / "empty.wav").touch()
    for name, fault in {"gone.wav": "no such file", "": "is a folder", "empty.wav": "zero length"}.items():
        path = tmp_path / name
        with pytest.raises(AudioError, match=f"{path}: {fault}"):
            read_audio(path)


@pytest.mark.parametrize(
    "content, fault",
    [
        (b"this is text, not sound" * 10, "corrupt, or not audio"),
        (as_wav(np.zeros(0, dtype=np.float32)), "zero length"),
        (b"", "zero length"),
        (as_wav(np.array([0.0, np.nan])), r"NaN or infinite samples, the first at 0\.000 s"),
        (as_wav(np.array([0.0, -np.inf])), "NaN or infinite"),
        (as_wav(tone(440, SAMPLE_RATE_HZ, 2), subtype="PCM_16", form="FLAC")[:9000], "corrupt audio"),
    ],
    # Not the bytes: a float WAV holds the second it was written in, and test processes would disagree on the names.
    ids=["text", "no samples", "no bytes", "NaN", "infinite", "cut short"],
)
def test_bad_content_is_named(content, fault):
    with pytest.raises(AudioError, match=f"^train.jsonl row 3: {fault}"):
        read_audio(content, name="train.jsonl row 3")


def test_length_is_limited_only_when_asked():
    clip = as_wav(np.zeros(2 * SAMPLE_RATE_HZ))
    assert len(read_audio(clip)) == len(read_audio(clip, max_duration_s=2.0)) == 2 * SAMPLE_RATE_HZ
    with pytest.raises(AudioError, match=r"2\.0 s, longer than the limit of 1\.9 s"):
        read_audio(clip, max_duration_s=1.9)


def test_duration_is_the_header_s(tmp_path):
    path = tmp_path / "a.wav"
    path.write_bytes(as_wav(np.zeros(12345), rate_hz=8000))
    assert duration_s(path) == duration_s(path.read_bytes()) == 12345 / 8000
    with pytest.raises(AudioError, match="no such file"):
        duration_s(Path("gone.wav"))


def test_a_wav_that_breaks_off_is_named(tmp_path: Path) -> None:
    clip = tmp_path / "cut.wav"
    clip.write_bytes(as_wav(np.zeros(16_000), subtype="PCM_16")[:10_044])
    with pytest.raises(AudioError, match=r"cut\.wav: truncated, 10000 of 32000 bytes"):
        read_audio(clip)


@pytest.mark.parametrize("form", ["AIFF", "AU"])
def test_an_aiff_or_au_that_breaks_off_is_named(form: str) -> None:
    whole = as_wav(np.full(16_000, 0.5), subtype="PCM_16", form=form)
    assert len(read_audio(whole)) == 16_000
    with pytest.raises(AudioError, match="truncated"):
        read_audio(whole[:20_000])


def test_a_segment_behind_the_place_where_a_flac_breaks_off_is_named(tmp_path: Path) -> None:
    whole = as_wav(tone(440, SAMPLE_RATE_HZ, 5), subtype="PCM_16", form="FLAC")
    cut = tmp_path / "cut.flac"
    cut.write_bytes(whole[: len(whole) // 2])
    for clip in (Segment(cut, 3.0, 0.5), Segment(cut, 4.5)):
        with pytest.raises(AudioError, match="corrupt audio"):
            read_audio(clip)
        assert measure_clip(clip).kind == "corrupt"


def test_a_flac_out_of_a_pipe_is_named_with_its_remedy() -> None:
    """Its header does not know its length, and libsndfile cannot move in it."""
    piped = bytearray(as_wav(np.full(16_000, 0.5), subtype="PCM_16", form="FLAC"))
    piped[21] &= 0xF0  # the 36 bits of STREAMINFO that count the samples
    piped[22:26] = bytes(4)
    for read in (read_audio, duration_s, lambda clip: read_audio(clip, max_duration_s=30.0)):
        with pytest.raises(AudioError, match="does not say how long it is"):
            read(bytes(piped))
    assert "does not say how long it is" in str(measure_clip(bytes(piped)).fault)


@pytest.mark.parametrize("length", [0xFFFFFFFF, 0x7FFFFFFF])
def test_a_wav_out_of_a_pipe_is_read(length: int) -> None:
    """Its header does not know its length."""
    whole = as_wav(np.full(16_000, 0.5), subtype="PCM_16")
    at = whole.index(b"data") + 4
    piped = whole[:at] + length.to_bytes(4, "little") + whole[at + 4 :]
    np.testing.assert_array_equal(read_audio(piped), read_audio(whole))
