"""Recordings of any length are cut where it is quiet and read a piece at a time, as if they were read whole."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from audiolora.speech.data.audio import AudioError, read_audio
from audiolora.speech.texts.recordings import Piece, Recording, open_recording, pieces_of, read_pieces, recording_of

RATE_HZ = 16_000


def bursts(spans: list[tuple[float, float]], duration_s: float, *, floor: float = 1e-4, seed: int = 0) -> np.ndarray:
    """Noise that is loud within the spans (start, end) and quiet outside."""
    samples = floor * np.random.default_rng(seed).standard_normal(round(duration_s * RATE_HZ))
    for start_s, end_s in spans:
        part = slice(round(start_s * RATE_HZ), round(end_s * RATE_HZ))
        samples[part] += 0.1 * np.random.default_rng(seed + 1).standard_normal(samples[part].shape)
    return samples.astype(np.float32)


@pytest.mark.parametrize("floor", [0.0, 1e-4, 0.01])  # digital silence, a good room, 20 dB below the speech
def test_cuts_lie_in_pauses(floor: float) -> None:
    rng = np.random.default_rng(3)
    edges = np.cumsum(rng.uniform([1.0, 0.3] * 20, [4.0, 1.0] * 20))
    spans = [(float(edges[i]), float(edges[i + 1])) for i in range(1, 38, 2)]
    spans = [(a, b) for a, b in spans if b - a > 0.3]
    quiet = [(0.0, spans[0][0])] + [(a[1], b[0]) for a, b in pairwise(spans)]
    recording = recording_of(bursts(spans, float(edges[-1]), floor=floor), "x")
    pieces = pieces_of(recording, 12.0)
    assert len(pieces) >= 4 and all(piece.overlap_s == 0 for piece in pieces)
    for piece in pieces[:-1]:
        assert any(start_s <= piece.end_s <= end_s for start_s, end_s in quiet), piece


@given(
    duration_s=st.floats(0.05, 200.0),
    longest_s=st.floats(1.0, 30.0),
    pauses=st.lists(st.tuples(st.floats(0, 190), st.floats(0.05, 8.0)), max_size=12),
)
@settings(max_examples=60, deadline=None)
def test_pieces_cover_everything_and_are_never_too_long(
    duration_s: float, longest_s: float, pauses: list[tuple[float, float]]
) -> None:
    levels = np.full(max(1, int(np.ceil(round(duration_s * 25, 6)))), 0.01)
    for start_s, length_s in pauses:
        levels[round(start_s * 25) : round((start_s + length_s) * 25)] = 0.0
    pieces = pieces_of(Recording(Path("x"), "x", duration_s, levels), longest_s)
    assert pieces[0].start_s == 0 and pieces[-1].end_s == duration_s and pieces[-1].overlap_s == 0
    assert all(0 < piece.end_s - piece.start_s <= longest_s + 1e-9 for piece in pieces)
    for left, right in pairwise(pieces):
        assert left.end_s - right.start_s == pytest.approx(left.overlap_s)
        assert right.start_s > left.start_s
    assert all(piece.silent == bool((levels[_levels(piece)] < 1e-7).all()) for piece in pieces)


def _levels(piece: Piece) -> slice:
    return slice(round(piece.start_s * 25), int(np.ceil(round(piece.end_s * 25, 6))))


def test_without_a_pause_neighbours_overlap() -> None:
    recording = recording_of(bursts([(0.0, 40.0)], 40.0), "x")
    pieces = pieces_of(recording, 15.0)
    assert len(pieces) >= 3 and all(piece.overlap_s == pytest.approx(2.0, abs=0.1) for piece in pieces[:-1])


def test_without_a_pause_the_cut_is_where_it_is_least_loud() -> None:
    """The middle of the overlap, anywhere in the last 60 % of a piece: its ends are no quieter than they are."""
    for quietest in (310, 500, 715):  # levels, 25 a second
        levels = np.full(1500, 0.01)
        levels[quietest - 2 : quietest + 3] = 0.007
        first = pieces_of(Recording(Path("x"), "x", 60.0, levels), 30.0)[0]
        assert first.end_s - first.overlap_s / 2 == pytest.approx(quietest / 25)


@pytest.mark.parametrize("rate_hz", [8000, 11025, 16000, 44100])
def test_a_file_read_in_pieces_is_the_file_read_whole(tmp_path: Path, rate_hz: int) -> None:
    path = tmp_path / "x.flac"
    stereo = 0.1 * np.random.default_rng(0).standard_normal((round(7.31 * rate_hz), 2))
    soundfile.write(path, stereo, rate_hz, "PCM_16")
    recording, whole = open_recording(path), read_audio(path)
    assert recording.duration_s == pytest.approx(7.31, abs=1e-4)
    power = recording_of(whole, "x").levels
    assert len(recording.levels) == len(power) == 183
    pieces = [Piece(0.0, 2.0), Piece(2.0, 3.48), Piece(2.48, 6.0), Piece(6.0, recording.duration_s)]
    for piece, samples in zip(pieces, read_pieces(recording, pieces), strict=True):
        wanted = whole[round(piece.start_s * 16_000) : round(piece.end_s * 16_000)]
        assert abs(len(samples) - len(wanted)) <= 1
        n = min(len(samples), len(wanted)) - 8  # the whole file's own end is an edge too
        np.testing.assert_allclose(samples[8:n], wanted[8:n], atol=2e-3 if rate_hz % 40 else 1e-3)


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    import tracemalloc

    path = tmp_path / "long.flac"
    with soundfile.SoundFile(path, "w", 8000, 1, "PCM_16") as file:
        for _ in range(40):  # 20 minutes
            file.write(np.zeros(8000 * 30))
    tracemalloc.start()
    recording = open_recording(path)
    for samples in read_pieces(recording, pieces_of(recording, 30.0)):
        assert not samples.any()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert recording.duration_s == 1200 and peak < 30e6, "whole, it is 77 MB at 16 kHz"


def test_what_cannot_be_heard_is_named(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "nan.wav", np.array([0.0] * 8000 + [np.nan]), 8000, "FLOAT")
    with pytest.raises(AudioError, match=r"nan\.wav: NaN or infinite samples, the first at 1\.000 s"):
        open_recording(tmp_path / "nan.wav")
    soundfile.write(tmp_path / "none.wav", np.zeros(0), 8000)
    with pytest.raises(AudioError, match="holds no samples"):
        open_recording(tmp_path / "none.wav")
    with pytest.raises(AudioError, match="no such file"):
        open_recording(tmp_path / "missing.wav")
    changed = tmp_path / "changed.wav"
    soundfile.write(changed, np.zeros(8000 * 40), 8000)
    recording = open_recording(changed)
    soundfile.write(changed, np.zeros(8000 * 5), 8000)
    with pytest.raises(AudioError, match="shorter than it was"):
        list(read_pieces(recording, pieces_of(recording, 30.0)))
    with pytest.raises(ValueError, match="x must be mono"):
        recording_of(np.zeros((2, 5)), "x")
