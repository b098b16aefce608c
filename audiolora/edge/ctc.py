"""Audio to text on the device for CTC models: normalisation, the graph once a batch, decoding, times of words.

What transformers' ``Wav2Vec2FeatureExtractor`` and ``Wav2Vec2CTCTokenizer.batch_decode`` do, in NumPy. A batch of a
model that takes lengths is padded with zeros, and each clip's frames are its own; a clip of any other model runs alone,
since such a model hears the padding as silence and its group norm counts it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from audiolora.edge.audio import checked_clips
from audiolora.edge.ctc_search import beam_search, best_path, log_softmax
from audiolora.export.ctc_settings import LENGTHS, CtcSettings
from audiolora.export.errors import BundleError

Run = Callable[[dict[str, np.ndarray]], np.ndarray]
"""The graph: ``input_values`` (N, samples) float32, if masked ``lengths`` (N,) too → logits (N, frames, vocabulary)."""

Audio = np.ndarray | Sequence[np.ndarray]
"""A clip (samples,), or several."""

INPUT = "input_values"


@dataclass(frozen=True)
class Word:
    """A word and where it is in its clip."""

    text: str
    start_s: float
    end_s: float


def transcribe_ctc(
    run: Run, settings: CtcSettings, audio: Audio, sample_rate_hz: int, *, batch_size: int = 8, beam_width: int = 1
) -> str | list[str]:
    """The text of a clip, or of each of several; see `Session.transcribe`.

    Args:
        run: the graph with an adapter.
        settings: of the adapter, or of the base.
        audio: (samples,) float, or several.
        sample_rate_hz: of it.
        batch_size, beam_width: as there.
    """
    paths = paths_of(run, settings, _clips(audio), sample_rate_hz, batch_size=batch_size, beam_width=beam_width)
    texts = [text_of(path, settings) for path in paths]
    return texts[0] if isinstance(audio, np.ndarray) else texts


def words_ctc(
    run: Run, settings: CtcSettings, audio: Audio, sample_rate_hz: int, *, batch_size: int = 8, beam_width: int = 1
) -> list[Word] | list[list[Word]]:
    """The words of a clip, or of each of several, and where they are; arguments as `transcribe_ctc`."""
    paths = paths_of(run, settings, _clips(audio), sample_rate_hz, batch_size=batch_size, beam_width=beam_width)
    frame_s = settings.stride / settings.sample_rate_hz
    found = [word_frames(path, settings) for path in paths]
    words = [[Word(text, start * frame_s, end * frame_s) for text, start, end in of_clip] for of_clip in found]
    return words[0] if isinstance(audio, np.ndarray) else words


def paths_of(
    run: Run,
    settings: CtcSettings,
    audios: Sequence[np.ndarray],
    sample_rate_hz: int,
    *,
    batch_size: int = 8,
    beam_width: int = 1,
) -> list[np.ndarray]:
    """For each clip the output that each of its frames is taken for, (frames,).

    Args:
        run, settings, sample_rate_hz: as in `transcribe_ctc`.
        audios: (samples,) float each.
        batch_size: clips that run together, where the model takes lengths.
        beam_width: 1, each frame's most probable one; else the best path of what `beam_search` finds.

    Raises:
        ValueError: another sample rate, a clip that is none or too short, a size below 1.
    """
    for name, size in (("batch_size", batch_size), ("beam_width", beam_width)):
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")
    clips = [normalized(clip, settings) for clip in _checked(settings, audios, sample_rate_hz)]
    blank, paths = settings.vocabulary.index(settings.blank), [np.zeros(0, np.int64)] * len(clips)
    for batch in _batches(settings, clips, batch_size):
        logits = _logits(run, settings, [clips[i] for i in batch])
        for i, of_clip in zip(batch, logits, strict=True):
            of_clip = of_clip[: settings.frames(len(clips[i]))]
            if beam_width == 1:
                paths[i] = of_clip.argmax(axis=1)
            else:
                log_probs = log_softmax(of_clip)
                paths[i] = best_path(log_probs, beam_search(log_probs, beam_width, blank)[0], blank)
    return paths


def normalized(clip: np.ndarray, settings: CtcSettings) -> np.ndarray:
    """A clip (samples,) float32 as the model hears it, to the bit what ``Wav2Vec2FeatureExtractor`` gives."""
    if not settings.normalized:
        return clip
    scaled: np.ndarray = (clip - clip.mean()) / np.sqrt(clip.var() + 1e-7)
    return scaled


def text_of(path: np.ndarray, settings: CtcSettings) -> str:
    """The text of a path, as ``Wav2Vec2CTCTokenizer.batch_decode`` writes it.

    Args:
        path: (frames,), an output for each frame.
        settings: repetitions of one text are one; then the blank and what is dropped go.
    """
    text = "".join(written for written, _, _ in _written(path, settings)).strip()
    text = text.lower() if settings.lower else text
    for before, after in _TIDY if settings.tidied else ():
        text = text.replace(before, after)
    return text


def word_frames(path: np.ndarray, settings: CtcSettings) -> list[tuple[str, int, int]]:
    """Each word with its first frame and the one after its last, as the tokenizer's ``output_word_offsets``."""
    words = []
    for is_space, group in groupby(_written(path, settings), key=lambda found: found[0] == settings.space):
        if not is_space:
            letters = list(group)
            word = "".join(written for written, _, _ in letters)
            words.append((word.lower() if settings.lower else word, letters[0][1], letters[-1][2]))
    return words


# transformers' clean_up_tokenization.
_TIDY = (
    *((f" {mark}", mark) for mark in (".", "?", "!", ",")),
    (" ' ", "'"),
    *((f" {ending}", ending) for ending in ("n't", "'m", "'s", "'ve", "'re")),
)


def _written(path: np.ndarray, settings: CtcSettings) -> Iterator[tuple[str, int, int]]:
    """(what is written, first frame, frame after the last) of each run of one text that is not left out."""
    end = 0
    for text, group in groupby(settings.vocabulary[i] for i in path):
        start, end = end, end + sum(1 for _ in group)
        if text != settings.blank and text not in settings.dropped:
            yield settings.space if text == settings.delimiter else text, start, end


def _clips(audio: Audio) -> Sequence[np.ndarray]:
    return [audio] if isinstance(audio, np.ndarray) else audio


def _logits(run: Run, settings: CtcSettings, clips: Sequence[np.ndarray]) -> np.ndarray:
    lengths = np.array([len(clip) for clip in clips], np.int64)
    padded = np.zeros((len(clips), lengths.max()), np.float32)
    for row, clip in zip(padded, clips, strict=True):
        row[: len(clip)] = clip
    logits = run({INPUT: padded, LENGTHS: lengths} if settings.masked else {INPUT: padded})
    if logits.ndim != 3 or logits.shape[2] != len(settings.vocabulary):
        raise BundleError(
            f"the graph gives logits of shape {logits.shape}, and the vocabulary has {len(settings.vocabulary)} texts; "
            "export it again"
        )
    return logits


def _batches(settings: CtcSettings, clips: Sequence[np.ndarray], size: int) -> Iterator[list[int]]:
    """Indices of clips that run together, the longest first, so that little is padded."""
    size = size if settings.masked else 1
    order = sorted(range(len(clips)), key=lambda i: -len(clips[i]))
    for begin in range(0, len(order), size):
        yield order[begin : begin + size]


def _checked(settings: CtcSettings, audios: Sequence[np.ndarray], sample_rate_hz: int) -> list[np.ndarray]:
    clips = checked_clips(audios, sample_rate_hz, settings.sample_rate_hz)
    for i, clip in enumerate(clips):
        if len(clip) < settings.fewest_samples:
            raise ValueError(
                f"clip {i} has {len(clip)} samples, and the model needs {settings.fewest_samples} for its "
                f"{settings.fewest_frames} frame(s); drop it, or pad it with zeros"
            )
    return clips
