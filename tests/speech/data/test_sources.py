"""Segments and members: their samples against slices of the whole file, as soundfile and librosa give them."""

from __future__ import annotations

import io
import pickle
import tarfile
from pathlib import Path

import librosa
import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from audiolora.speech.data.audio import SAMPLE_RATE_HZ, AudioError, duration_s, read_audio
from audiolora.speech.data.sources import OVERSHOOT_S, Segment, TarMember, file_of

FORMS = [
    ("WAV", "PCM_16"),
    ("WAV", "FLOAT"),
    ("WAV", "ULAW"),
    ("WAV", "GSM610"),
    ("FLAC", "PCM_16"),
    ("OGG", "VORBIS"),
    ("OGG", "OPUS"),
    ("MP3", "MPEG_LAYER_III"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Five seconds of a wandering tone at 8, 16 and 48 kHz in every form."""
    folder = tmp_path_factory.mktemp("long")
    for form, subtype in FORMS:
        for rate_hz in (8000, 16_000, 48_000):
            source = np.random.default_rng(rate_hz)
            steps = source.uniform(0, 0.4, 5 * rate_hz // 50).repeat(50)
            tone = 0.3 * np.sin(np.cumsum(steps))
            soundfile.write(folder / f"{form}-{subtype}-{rate_hz}", tone, rate_hz, format=form, subtype=subtype)
    return folder


@settings(max_examples=40, deadline=None)
@given(
    form=st.sampled_from(FORMS),
    rate_hz=st.sampled_from([8000, 16_000, 48_000]),
    start_ms=st.integers(0, 4900),
    length_ms=st.integers(20, 1500),
)
def test_a_segment_is_that_slice_of_its_file(folder, form, rate_hz, start_ms, length_ms):
    path = folder / f"{form[0]}-{form[1]}-{rate_hz}"
    whole, _ = soundfile.read(path, dtype="float32")
    start_s, length_s = start_ms / 1000, min(length_ms / 1000, 5 + OVERSHOOT_S / 2 - start_ms / 1000)
    part = whole[round(start_s * rate_hz) : round((start_s + length_s) * rate_hz)]
    heard = read_audio(Segment(path, start_s, length_s))
    if rate_hz != SAMPLE_RATE_HZ:
        part = librosa.resample(part, orig_sr=rate_hz, target_sr=SAMPLE_RATE_HZ)
    # Exact; MP3's decoder rounds otherwise after a seek.
    np.testing.assert_allclose(heard, part, atol=1e-5 if form[0] == "MP3" else 0)


def test_away_from_its_ends_a_segment_is_a_slice_of_the_resampled_file(folder):
    """It is cut first and resampled then, so the filter's reach at either end is all that differs."""
    path = folder / "WAV-FLOAT-8000"
    whole, part = read_audio(path), read_audio(Segment(path, 1.0, 2.0))
    assert len(part) == 2 * SAMPLE_RATE_HZ
    reach = SAMPLE_RATE_HZ // 20
    np.testing.assert_allclose(part[reach:-reach], whole[SAMPLE_RATE_HZ:][reach : len(part) - reach], atol=1e-3)


def test_a_segment_to_the_end_and_its_length(folder):
    path = folder / "WAV-PCM_16-8000"
    assert len(read_audio(Segment(path, 4.5))) == SAMPLE_RATE_HZ // 2
    assert duration_s(Segment(path, 4.5)) == 0.5 and duration_s(Segment(path, 1.0, 2.0)) == 2.0
    with pytest.raises(AudioError, match=r"longer than the limit of 1 s"):
        read_audio(Segment(path, 1.0, 2.0), max_duration_s=1)
    assert len(read_audio(Segment(path, 1.0, 0.5), max_duration_s=1)) == SAMPLE_RATE_HZ // 2


@pytest.mark.parametrize(
    "times, fault",
    [
        ((4.0, 2.0), r"WAV-PCM_16-8000 \(4 to 6 s\): the file ends at 5.00 s, before the segment does"),
        ((5.0, 0.4), "the file ends at 5.00 s"),
        ((6.0, None), "the file ends at 5.00 s"),
        ((1.0, 0.00001), "shorter than a sample"),
        ((0.0, 7.0, True), "lasts 5.00 s, and its row says duration 7; mend it, or add an offset"),
        ((0.0, 3.0, True), "lasts 5.00 s, and its row says duration 3"),
    ],
)
def test_segments_that_the_file_does_not_have(folder, times, fault):
    with pytest.raises(AudioError, match=fault):
        read_audio(Segment(folder / "WAV-PCM_16-8000", *times))


def test_a_whole_file_of_a_stated_length_is_read_whole(folder):
    path = folder / "WAV-PCM_16-8000"
    np.testing.assert_array_equal(read_audio(Segment(path, 0.0, 4.9, whole=True)), read_audio(path))


@pytest.mark.parametrize(
    "times", [(-1.0,), (float("nan"),), (0.0, 0.0), (0.0, -1.0), (0.0, float("inf")), (1.0, 2.0, True)]
)
def test_times_that_make_no_segment(times):
    with pytest.raises(ValueError, match=r"^a.wav: a (segment|whole file) (starts|lasts)"):
        Segment(Path("a.wav"), *times)
    with pytest.raises(ValueError, match="not out of another segment"):
        Segment(Segment(Path("a.wav"), 1.0), 1.0)


def test_members_of_a_tar(tmp_path):
    tones = {f"{name}.flac": np.full(800, value, np.float32) for name, value in (("a", 0.25), ("b", 0.5))}
    path = tmp_path / "shard.tar"
    with tarfile.open(path, "w") as tar:
        for name, samples in tones.items():
            file = io.BytesIO()
            soundfile.write(file, samples, SAMPLE_RATE_HZ, format="FLAC", subtype="PCM_16")
            member = tarfile.TarInfo(name)
            member.size = len(file.getvalue())
            tar.addfile(member, io.BytesIO(file.getvalue()))
    with tarfile.open(path) as tar:
        members = [TarMember(path, info.name, info.offset_data, info.size) for info in tar]
    for member, samples in zip(members, tones.values(), strict=True):
        np.testing.assert_array_equal(read_audio(member), samples)
        np.testing.assert_array_equal(read_audio(Segment(member, 0.01, 0.02)), samples[160:480])
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(AudioError, match=r"shard.tar: a.flac: 88 of \d+ bytes are there; fetch"):
        read_audio(members[0])
    path.unlink()
    with pytest.raises(AudioError, match=r"shard.tar: a.flac: cannot be read"):
        read_audio(members[0])


def test_sources_are_values():
    tar = TarMember(Path("x.tar"), "a.wav", 512, 100)
    for source in (tar, Segment(tar, 1.0, 2.0), Segment(Path("call.wav"), 1.0)):
        assert pickle.loads(pickle.dumps(source)) == source and hash(source) == hash(pickle.loads(pickle.dumps(source)))
        assert len(pickle.dumps(source)) < 300
    assert file_of(Segment(tar, 1.0)) == Path("x.tar") and file_of(Path("a.wav")) == Path("a.wav")
    assert file_of(b"RIFF") is None
