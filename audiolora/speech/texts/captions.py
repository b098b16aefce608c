"""Captions of a transcription as SubRip (.srt) and WebVTT (.vtt)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from audiolora.speech.texts.transcription import Segment, Transcription, Word, with_words

LETTERS = 84  # of a caption: two lines of 42, as broadcasters have it
PAUSE_S = 0.6
SENTENCE_ENDS = (".", "!", "?", "…", "。", "！", "？")


def captions(said: Transcription) -> list[Segment]:
    """What is shown at once: segments as they are, and those with timed words cut where one reads them well.

    A caption ends with a sentence, before a pause of 0.6 s, and before it holds more than 84 letters.

    Example:
        >>> words = (Word("One.", 0.0, 0.5, 1.0), Word("Two", 0.5, 0.8, 1.0), Word("three.", 2.0, 2.4, 1.0))
        >>> [c.text for c in captions(Transcription(3.0, (Segment(0.0, 2.4, "One. Two three.", words=words),)))]
        ['One.', 'Two', 'three.']
    """
    return [caption for segment in said.segments for caption in _cut(segment)]


def _cut(segment: Segment) -> Iterator[Segment]:
    if not segment.words:
        yield segment
        return
    held: list[Word] = []
    for word in segment.words:
        if held and _ends(held, word):
            yield with_words(segment, held)
            held = []
        held.append(word)
    yield with_words(segment, held)


def _ends(held: Sequence[Word], following: Word) -> bool:
    letters = sum(len(word.text) + 1 for word in held) + len(following.text)
    pause_s = following.start_s - held[-1].end_s
    return letters > LETTERS or pause_s >= PAUSE_S or held[-1].text.endswith(SENTENCE_ENDS)


def srt(said: Transcription) -> str:
    r"""SubRip.

    Example:
        >>> srt(Transcription(1.5, (Segment(0.0, 1.5, "Hello."),)))
        '1\n00:00:00,000 --> 00:00:01,500\nHello.\n\n'
    """
    return "".join(
        f"{number}\n{_clock(one.start_s, ',')} --> {_clock(one.end_s, ',')}\n{_shown(one.text)}\n\n"
        for number, one in enumerate(captions(said), start=1)
    )


def vtt(said: Transcription) -> str:
    """WebVTT; its reserved characters are escaped."""
    escaped = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})
    return "WEBVTT\n\n" + "".join(
        f"{_clock(one.start_s, '.')} --> {_clock(one.end_s, '.')}\n{_shown(one.text).translate(escaped)}\n\n"
        for one in captions(said)
    )


def _shown(text: str) -> str:
    return " ".join(text.split()).replace("-->", "→")  # an arrow would be read as times


def _clock(time_s: float, point: str) -> str:
    whole, thousandths = divmod(round(time_s * 1000), 1000)
    return f"{whole // 3600:02}:{whole // 60 % 60:02}:{whole % 60:02}{point}{thousandths:03}"
