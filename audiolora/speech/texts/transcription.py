"""What is said when: words, segments, and the transcription of a recording; pieces that overlap are joined by words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from audiolora.speech.texts.recordings import Piece

UNSPACED = frozenset({"zh", "ja", "th", "lo", "my", "yue"})
"""Languages written without spaces, which openai-whisper splits by characters."""
WORDS_PER_S = 6.0
"""More than people say: overlapping pieces share no more words than this times the overlap."""


@dataclass(frozen=True)
class Word:
    """A word as written, with its punctuation, and when it is said.

    Args:
        text: without the space before it.
        start_s, end_s: in the recording, s.
        probability: geometric mean of its tokens', in [0, 1].
    """

    text: str
    start_s: float
    end_s: float
    probability: float


@dataclass(frozen=True)
class Segment:
    """A stretch of speech that was written down as one.

    Args:
        start_s, end_s: in the recording, s.
        text: what is said.
        language: Whisper's code, or None for an English-only model.
        words: with their times, where these were asked for.
        temperature: it was decoded at.
        log_probability: mean over the tokens of the piece it was decoded in, where the fall-back asked for it.
        compression_ratio: of that piece's text.
        no_speech: probability that there is no speech in that piece, where the fall-back asked for it.
    """

    start_s: float
    end_s: float
    text: str
    language: str | None = None
    words: tuple[Word, ...] = ()
    temperature: float = 0.0
    log_probability: float | None = None
    compression_ratio: float | None = None
    no_speech: float | None = None


@dataclass(frozen=True)
class Transcription:
    """What is said in a recording.

    Args:
        duration_s: of the recording.
        segments: in order; none where nothing is said.

    Example:
        >>> Transcription(2.0, (Segment(0.0, 1.0, "One."), Segment(1.0, 2.0, "Two."))).text
        'One. Two.'
    """

    duration_s: float
    segments: tuple[Segment, ...]

    @property
    def text(self) -> str:
        """All of it; segments without spaces between their words are joined without one."""
        joined = ""
        for segment in self.segments:
            gap = " " if joined and segment.text and segment.language not in UNSPACED else ""
            joined += gap + segment.text
        return joined


def split_at_timestamps(
    tokens: Sequence[int], first_timestamp: int, start_s: float, end_s: float
) -> list[tuple[float, float, list[int]]]:
    """(start, end, text tokens) of each stretch that Whisper's timestamp tokens set apart.

    A stretch without its closing timestamp ends with the piece.

    Args:
        tokens: ids with timestamps among them.
        first_timestamp: the id of <|0.00|>; each next id is 0.02 s later.
        start_s, end_s: of the piece in the recording, s.

    Example:
        >>> split_at_timestamps([100, 7, 8, 150, 150, 9, 175], 100, 30.0, 40.0)
        [(30.0, 31.0, [7, 8]), (31.0, 31.5, [9])]
    """
    stretches: list[tuple[float, float, list[int]]] = []
    opened, text = start_s, list[int]()
    for token in tokens:
        if token < first_timestamp:
            text.append(token)
            continue
        time_s = min(start_s + round((token - first_timestamp) * 0.02, 2), end_s)
        if text:
            stretches.append((opened, max(time_s, opened), text))
        opened, text = time_s, []
    return [*stretches, (opened, max(end_s, opened), text)] if text else stretches


def heard_until(tokens: Sequence[int], first_timestamp: int) -> tuple[Sequence[int], float | None]:
    """The tokens that count, and the time, s, from which Whisper wants to hear the rest again.

    Two timestamps in a row close a stretch and open the next. A text that does not end with the one timestamp that
    closes a stretch was broken off: what follows the last pair is left out and to be decoded from there, as in
    openai-whisper (Radford et al., section 3.8). None where all was heard.

    Example:
        >>> heard_until([100, 7, 150, 150, 9], 100), heard_until([100, 7, 150], 100)
        (([100, 7, 150], 1.0), ([100, 7, 150], None))
    """
    stamps = [token >= first_timestamp for token in tokens]
    pairs = [index for index, pair in enumerate(pairwise(stamps)) if all(pair)]
    if stamps[-2:] == [False, True] or not pairs or tokens[pairs[-1]] == first_timestamp:
        return tokens, None
    return tokens[: pairs[-1] + 1], round((tokens[pairs[-1]] - first_timestamp) * 0.02, 2)


def joined(plan: Sequence[Piece], found: Sequence[list[Segment]]) -> list[Segment]:
    """A recording's segments, from those of its pieces."""
    whole = list(found[0])
    for before, segments in zip(plan, found[1:], strict=False):
        if before.overlap_s:
            whole = join_overlapping(whole, segments, before.end_s - before.overlap_s / 2, before.overlap_s)
        else:
            whole += segments
    return whole


def join_overlapping(
    left: Sequence[Segment], right: Sequence[Segment], boundary_s: float, overlap_s: float
) -> list[Segment]:
    """Two neighbouring pieces' segments, with what both heard written once.

    Words with times are divided at the middle of the overlap. Others are aligned: of the longest run of words
    that ends `left` and begins `right`, within what can be said in the overlap, the left piece's words are kept, what
    the left one wrote after it and the right one before it is dropped: there each heard half a word.

    Args:
        left, right: segments of a piece and of the next.
        boundary_s: the middle of the overlap.
        overlap_s: its length.
    """
    if not left or not right:
        return [*left, *right]
    if all(segment.words for segment in (*left, *right)):
        return [
            *_only(left, lambda word: _middle(word) < boundary_s),
            *_only(right, lambda w: _middle(w) >= boundary_s),
        ]
    most = int(overlap_s * WORDS_PER_S) + 2
    ends, begins = _units(left[-1]), _units(right[0])
    tail, head = ends[-most:], begins[:most]
    size, begin, skipped = _longest_common_run([_plain(w) for w in tail], [_plain(w) for w in head])
    kept, rest = ends, begins
    if size:
        kept, rest = ends[: len(ends) - len(tail) + begin + size], begins[skipped + size :]
    middle_s = min(max(boundary_s, left[-1].start_s), right[0].end_s)
    last = replace(left[-1], text=_joined(kept, left[-1]), end_s=min(left[-1].end_s, middle_s))
    first = replace(right[0], text=_joined(rest, right[0]), start_s=max(right[0].start_s, middle_s))
    return [*left[:-1], last, *([first] if rest else []), *right[1:]]


def _longest_common_run(left: Sequence[str], right: Sequence[str]) -> tuple[int, int, int]:
    """(size, begin in left, begin in right); of several, the last in `left` and of these the first in `right`."""
    best = (0, 0, 0)
    for i in range(len(left)):
        for j in range(len(right)):
            size = 0
            while i + size < len(left) and j + size < len(right) and left[i + size] == right[j + size]:
                size += 1
            best = max(best, (size, i, -j))
    return best[0], best[1], -best[2]


def _middle(word: Word) -> float:
    return (word.start_s + word.end_s) / 2


def _only(segments: Sequence[Segment], keep: Callable[[Word], bool]) -> list[Segment]:
    """The segments with those of their words alone that are to be kept."""
    result = []
    for segment in segments:
        words = tuple(word for word in segment.words if keep(word))
        if words == segment.words:
            result.append(segment)
        elif words:
            result.append(with_words(segment, words))
    return result


def with_words(segment: Segment, words: Sequence[Word]) -> Segment:
    """The segment made of these words: its text and times are theirs."""
    text = _joined([word.text for word in words], segment)
    return replace(segment, text=text, words=tuple(words), start_s=words[0].start_s, end_s=words[-1].end_s)


def _units(segment: Segment) -> list[str]:
    return list(segment.text) if segment.language in UNSPACED else segment.text.split()


def _joined(units: Sequence[str], segment: Segment) -> str:
    return ("" if segment.language in UNSPACED else " ").join(units)


def _plain(word: str) -> str:
    letters = "".join(filter(str.isalnum, word)).casefold()
    return letters or word
