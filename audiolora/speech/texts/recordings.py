"""Audio of any length: read once for its levels, cut where it is quiet, and read again a piece at a time.

A recording's samples are not held; its levels, 25 a second, are: 3 hours are 2 MB.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from audiolora.speech.data.audio import SAMPLE_RATE_HZ, AudioError, read_audio
from audiolora.speech.data.audio_file import check_whole, open_audio
from audiolora.speech.whisper.features import check_samples

if TYPE_CHECKING:
    import soundfile

LEVELS_PER_S = 25  # a level every 40 ms; pieces begin and end on this grid
QUIET_S = 0.2  # a pause at least this long is a place to cut
OVERLAP_S = 2.0  # heard by both neighbours where there is no pause
LEAST_SHARE = 0.4  # of the longest piece: before it no cut is looked for
SILENCE = 1e-7  # mean power, full scale at 1: -70 dB; below it nothing is heard
HELD_S = 3600.0
"""Audio held in memory at once: an hour is 230 MB."""
_BLOCK_S = 30
_MARGIN_S = 0.2  # read on both sides of a piece, so that resampling has no edge in it


@dataclass(frozen=True)
class Recording:
    """Audio that is read piece by piece.

    Args:
        source: the path of a file, or samples (L,), 16 kHz, mono, float32.
        name: what errors call it.
        duration_s: its length.
        levels: mean power of every 40 ms, (n,), full scale at 1.
    """

    source: Path | np.ndarray
    name: str
    duration_s: float
    levels: np.ndarray

    def samples(self) -> np.ndarray:
        """All of it: (L,), 16 kHz, mono, float32."""
        return self.source if isinstance(self.source, np.ndarray) else read_audio(self.source, name=self.name)


@dataclass(frozen=True)
class Piece:
    """What is decoded at once: its begin and end in the recording, s, and how much of it the next piece hears too."""

    start_s: float
    end_s: float
    overlap_s: float = 0.0
    silent: bool = False


@dataclass(frozen=True)
class ReadPiece:
    """A piece with its samples (n_samples,), 16 kHz, mono, float32: the number of its recording, and its own in it."""

    recording: int
    index: int
    piece: Piece
    samples: np.ndarray


def recording_of(audio: np.ndarray, name: str) -> Recording:
    """A recording of samples in memory.

    Args:
        audio: (L,), 16 kHz, mono, float.
        name: what errors call it.

    Raises:
        ValueError: it is empty, not one-dimensional or not finite.
    """
    samples = np.ascontiguousarray(audio, dtype=np.float32)
    check_samples(samples, name)
    return Recording(samples, name, len(samples) / SAMPLE_RATE_HZ, _levels(samples[:, None], SAMPLE_RATE_HZ))


def open_recording(path: Path, *, name: str | None = None) -> Recording:
    """Read a file once, half a minute at a time, for its levels and its faults.

    Raises:
        AudioError: a missing file, a folder, corrupt or no audio, no samples, NaN or infinite samples.

    Example:
        >>> open_recording(Path("meeting.mp3")).duration_s  # doctest: +SKIP
        10800.0
    """
    called = name or str(path)
    levels, read = [], 0
    with open_audio(path, called) as file:
        rate_hz, promised = file.samplerate, file.frames
        check_whole(file, called)
        while len(block := _read(file, _BLOCK_S * rate_hz, called)):
            if not np.isfinite(block).all():
                at_s = (read + np.flatnonzero(~np.isfinite(block).all(axis=1))[0]) / rate_hz
                raise AudioError(f"{called}: NaN or infinite samples, the first at {at_s:.3f} s; export the clip again")
            levels.append(_levels(block, rate_hz))
            read += len(block)
    if read < promised:
        raise AudioError(f"{called}: corrupt audio, {read} of {promised} samples could be read; convert it again")
    if read == 0:
        raise AudioError(f"{called}: zero length, the file holds no samples; remove it or record it again")
    return Recording(path, called, read / rate_hz, np.concatenate(levels))


def _read(file: soundfile.SoundFile, frames: int, called: str) -> np.ndarray:
    try:
        return file.read(frames, dtype="float32", always_2d=True)
    except RuntimeError as error:  # soundfile.LibsndfileError
        raise AudioError(f"{called}: corrupt audio ({error}); record or convert it again") from error


def _levels(frames: np.ndarray, rate_hz: int) -> np.ndarray:
    """Mean power of every 40 ms of (n_frames, n_channels) that begin on a whole second."""
    power = np.square(frames.mean(axis=1, dtype=np.float32))
    edges = np.floor(np.arange(-(-len(power) * LEVELS_PER_S // rate_hz) + 1) * rate_hz / LEVELS_PER_S).astype(int)
    edges = np.unique(edges[edges < len(power)])  # one level may be shorter, at the end; rates below 25 Hz have fewer
    return np.add.reduceat(power, edges) / np.diff([*edges, len(power)])


def pieces_of(recording: Recording, longest_s: float) -> list[Piece]:
    """Cut a recording into pieces of at most `longest_s`: in the longest pause there is, else with an overlap.

    A pause is 0.2 s or more near the level of the background: within a fifth of the way, in dB, from the quietest
    twentieth to the loudest twentieth of the stretch. A piece below -70 dB throughout is silent.

    Args:
        recording: what to cut; where it is no longer than `longest_s`, it is one piece.
        longest_s: at least 1 s and at most 30 s.
    """
    if recording.duration_s <= longest_s:
        return [_piece(recording, 0, len(recording.levels), 0.0)]
    pieces, start = [], 0
    end, longest = len(recording.levels), int(longest_s * LEVELS_PER_S)
    overlap = min(round(OVERLAP_S * LEVELS_PER_S), longest // 4) // 2 * 2
    while end - start > longest:
        cut, quiet = _place_to_cut(recording.levels[start : start + longest], int(LEAST_SHARE * longest), overlap)
        stop = start + cut + (0 if quiet else overlap // 2)
        shared = 0.0 if quiet else overlap / LEVELS_PER_S
        pieces.append(_piece(recording, start, stop, shared))
        start = start + cut - (0 if quiet else overlap // 2)
    return [*pieces, _piece(recording, start, end, 0.0)]


def _piece(recording: Recording, start: int, stop: int, overlap_s: float) -> Piece:
    end_s = min(stop / LEVELS_PER_S, recording.duration_s) if stop < len(recording.levels) else recording.duration_s
    return Piece(start / LEVELS_PER_S, end_s, overlap_s, bool((recording.levels[start:stop] < SILENCE).all()))


def _place_to_cut(levels: np.ndarray, least: int, overlap: int) -> tuple[int, bool]:
    """Where to end a piece that begins with `levels`, and whether it is in a pause."""
    decibels = 10 * np.log10(levels + 1e-10)
    floor, speech = np.percentile(decibels, [5, 95])
    quiet = decibels[least:] <= max(floor + 0.2 * (speech - floor), 10 * np.log10(SILENCE))
    edges = np.flatnonzero(np.diff([False, *quiet, False]))
    begins, ends = edges[::2], edges[1::2]
    if len(begins) and speech - floor > 6 and (ends - begins).max() >= QUIET_S * LEVELS_PER_S:
        longest = int(np.argmax(ends - begins))
        return least + int(begins[longest] + ends[longest]) // 2, True
    if levels[least:].max() < SILENCE:
        return len(levels), True
    # Of five levels that are all there: padded with zeros at its ends, the mean would be least there.
    smooth = np.convolve(levels[least : len(levels) - overlap // 2], np.ones(5) / 5, mode="valid")
    return least + 2 + int(np.argmin(smooth)), False


def read_pieces(recording: Recording, pieces: Sequence[Piece]) -> Iterator[np.ndarray]:
    """The samples (n_samples,), 16 kHz, mono, float32, of pieces in the order of time; a file is read forwards once.

    Raises:
        AudioError: the file has changed since it was opened.
    """
    if len(pieces) == 1 and pieces[0].end_s == recording.duration_s and pieces[0].start_s == 0:
        yield recording.samples()
    elif isinstance(recording.source, np.ndarray):
        for piece in pieces:
            yield recording.source[round(piece.start_s * SAMPLE_RATE_HZ) : round(piece.end_s * SAMPLE_RATE_HZ)]
    else:
        yield from _read_forwards(recording.source, recording.name, pieces)


def portions(recordings: Sequence[Recording], plans: Sequence[Sequence[Piece]]) -> Iterator[list[ReadPiece]]:
    """The pieces of recordings, read; at most `HELD_S` of audio at once, however many recordings that is.

    Args:
        recordings: to read.
        plans: the pieces of each.

    Raises:
        AudioError: a file has changed since it was opened.
    """
    portion: list[ReadPiece] = []
    held_s = 0.0
    for number, (recording, plan) in enumerate(zip(recordings, plans, strict=True)):
        for index, (piece, samples) in enumerate(zip(plan, read_pieces(recording, plan), strict=True)):
            duration_s = len(samples) / SAMPLE_RATE_HZ
            if portion and held_s + duration_s > HELD_S:
                yield portion
                portion, held_s = [], 0.0
            portion.append(ReadPiece(number, index, piece, samples))
            held_s += duration_s
    if portion:
        yield portion


def _read_forwards(path: Path, called: str, pieces: Sequence[Piece]) -> Iterator[np.ndarray]:
    with open_audio(path, called) as file:
        rate_hz, held_from, held = file.samplerate, 0, np.zeros(0, np.float32)
        for piece in pieces:
            first = max(0, round((piece.start_s - _MARGIN_S) * rate_hz))
            last = round((piece.end_s + _MARGIN_S) * rate_hz)
            while held_from + len(held) < last and len(block := _read(file, _BLOCK_S * rate_hz, called)):
                held = np.concatenate([held[max(0, first - held_from) :], block.mean(axis=1, dtype=np.float32)])
                held_from = max(held_from, first)
            part = held[first - held_from : last - held_from]
            if len(part) < (piece.end_s - piece.start_s) * rate_hz - 1:
                raise AudioError(f"{called}: shorter than it was a moment ago; leave it alone while it is transcribed")
            yield _at_16_khz(part, rate_hz, piece.start_s - first / rate_hz, piece.end_s - piece.start_s)


def _at_16_khz(samples: np.ndarray, rate_hz: int, skip_s: float, duration_s: float) -> np.ndarray:
    if rate_hz != SAMPLE_RATE_HZ:
        import librosa

        samples = librosa.resample(samples, orig_sr=rate_hz, target_sr=SAMPLE_RATE_HZ)
    begin = round(skip_s * SAMPLE_RATE_HZ)
    return np.ascontiguousarray(samples[begin : begin + round(duration_s * SAMPLE_RATE_HZ)], dtype=np.float32)
