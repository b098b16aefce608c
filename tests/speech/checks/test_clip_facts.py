"""What is measured of a clip, against NumPy on signals whose facts are known."""

import numpy as np
import pytest
import soundfile

from audiolora.speech.checks.clip_facts import FLOOR_DBFS, measure_clip
from audiolora.speech.data.audio import AudioError, read_audio
from audiolora.speech.data.sources import Segment

RATE_HZ = 8000
TONE = 0.25 * np.sin(2 * np.pi * 440 * np.arange(2 * RATE_HZ) / RATE_HZ)  # two seconds, RMS 0.25 / √2


def write(path, samples, rate_hz=RATE_HZ, **options):
    soundfile.write(path, samples, rate_hz, **options)
    return path


@pytest.mark.parametrize("rate_hz", [8000, 16000, 44100])
@pytest.mark.parametrize("channels", [1, 2])
def test_a_tone(tmp_path, rate_hz, channels):
    tone = 0.25 * np.sin(2 * np.pi * 440 * np.arange(2 * rate_hz) / rate_hz)
    facts = measure_clip(write(tmp_path / "a.wav", np.stack([tone] * channels, axis=1), rate_hz, subtype="FLOAT"))
    assert facts.fault is None and not facts.silent and facts.clipped_share == 0
    assert (facts.duration_s, facts.sample_rate_hz, facts.channels, facts.encoding) == (
        2,
        rate_hz,
        channels,
        "WAV FLOAT",
    )
    assert facts.level_dbfs == pytest.approx(20 * np.log10(0.25 / np.sqrt(2)), abs=0.01)
    assert facts.peak == pytest.approx(0.25, abs=1e-3) and facts.dc_offset == pytest.approx(0, abs=1e-4)
    assert facts.leading_silence_s == facts.trailing_silence_s == 0 and facts.sound_s == 2


def test_level_and_offset_are_told_apart(tmp_path):
    facts = measure_clip(write(tmp_path / "a.wav", TONE + 0.125, subtype="FLOAT"))
    assert facts.dc_offset == pytest.approx(0.125, abs=1e-6)
    assert facts.level_dbfs == pytest.approx(20 * np.log10(0.25 / np.sqrt(2)), abs=0.01)
    constant = measure_clip(write(tmp_path / "b.wav", np.full(RATE_HZ, 0.5), subtype="FLOAT"))
    assert constant.silent and constant.level_dbfs == FLOOR_DBFS and constant.dc_offset == pytest.approx(0.5)


@pytest.mark.parametrize(("before_s", "after_s"), [(0.0, 0.5), (0.7, 0.0), (1.0, 0.3), (40.0, 35.0)])
def test_silence_at_the_ends_to_a_window(tmp_path, before_s, after_s):
    """Past half a minute the silence lies in another portion than the sound."""
    noise = np.random.default_rng(0).uniform(-1e-4, 1e-4, round((2 + before_s + after_s) * RATE_HZ))  # -85 dBFS
    noise[round(before_s * RATE_HZ) :][: len(TONE)] += TONE
    facts = measure_clip(write(tmp_path / "a.wav", noise, subtype="FLOAT"))
    assert facts.leading_silence_s == pytest.approx(before_s, abs=0.021)
    assert facts.trailing_silence_s == pytest.approx(after_s, abs=0.021)
    assert facts.level_dbfs == pytest.approx(10 * np.log10(np.var(noise)), abs=0.01)


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "PCM_U8", "ULAW", "ALAW", "FLOAT"])
def test_clipping_is_the_share_at_full_scale(tmp_path, subtype):
    loud = np.clip(8 * TONE, -1, 1)
    facts = measure_clip(write(tmp_path / "a.wav", loud, subtype=subtype))
    # A logarithmic step near full scale is wide: what lies next to it is rounded up to it.
    assert facts.clipped_share == pytest.approx(np.mean(np.abs(loud) >= 1), abs=0.03 if subtype[1:] == "LAW" else 0.01)
    assert measure_clip(write(tmp_path / "b.wav", 0.9 * TONE / 0.25, subtype=subtype)).clipped_share == 0


def test_the_same_samples_have_the_same_digest_in_any_lossless_file(tmp_path):
    noise = np.random.default_rng(0).integers(-9999, 9999, RATE_HZ, dtype=np.int16)
    digests = {measure_clip(write(tmp_path / f"a.{kind}", noise, subtype="PCM_16")).digest for kind in ("wav", "flac")}
    assert len(digests) == 1
    other = noise.copy()
    other[-1] += 1
    assert measure_clip(write(tmp_path / "b.wav", other, subtype="PCM_16")).digest not in digests
    assert measure_clip(write(tmp_path / "c.wav", noise, 2 * RATE_HZ, subtype="PCM_16")).digest not in digests
    assert measure_clip((tmp_path / "a.wav").read_bytes()).digest in digests


def test_a_segment_is_measured_as_a_file_of_its_own(tmp_path):
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 3 * RATE_HZ)
    whole = write(tmp_path / "whole.wav", noise, subtype="PCM_16")
    part = write(tmp_path / "part.wav", noise[RATE_HZ : 2 * RATE_HZ], subtype="PCM_16")
    assert measure_clip(Segment(whole, 1.0, 1.0)) == measure_clip(part)
    late = measure_clip(Segment(whole, 2.9, 5.0))
    assert late.kind == "times" and "the file ends at 3.00 s" in late.fault


def broken(tmp_path):
    whole = write(tmp_path / "whole.wav", TONE, subtype="PCM_16").read_bytes()
    flac = write(tmp_path / "whole.flac", np.random.default_rng(0).uniform(-1, 1, 5 * RATE_HZ)).read_bytes()
    nan = TONE.copy()
    nan[12_345] = np.nan
    write(tmp_path / "nan.wav", nan, subtype="FLOAT")
    write(tmp_path / "none.wav", np.zeros(0))
    files = {"cut.wav": whole[:-100], "cut.flac": flac[:9000], "junk.wav": b"junk", "empty.wav": b""}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    return {
        "cut.wav": "truncated",
        "cut.flac": "corrupt",
        "junk.wav": "corrupt",
        "empty.wav": "empty",
        "nan.wav": "nan",
        "none.wav": "empty",
        "gone.wav": "missing",
    }


def test_what_read_audio_refuses_has_the_same_fault(tmp_path):
    for name, kind in broken(tmp_path).items():
        facts = measure_clip(tmp_path / name)
        with pytest.raises(AudioError) as caught:
            read_audio(tmp_path / name, name="clip")
        assert (facts.kind, f"clip: {facts.fault}") == (kind, str(caught.value)), name


def test_a_file_that_may_not_be_read_is_not_called_corrupt(tmp_path, monkeypatch):
    path = write(tmp_path / "a.wav", TONE)

    def denied(*args):
        raise soundfile.LibsndfileError(2, "Error opening 'a.wav': ")

    monkeypatch.setattr(soundfile, "SoundFile", denied)
    assert measure_clip(path).kind == "unreadable"
