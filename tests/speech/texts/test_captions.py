"""Captions, read back by rules written down here: what SubRip and WebVTT players accept."""

from __future__ import annotations

import re
from itertools import pairwise

from audiolora.speech.texts.captions import captions, srt, vtt
from audiolora.speech.texts.transcription import Segment, Transcription, Word

SAID = Transcription(
    3700.0,
    (Segment(0.0, 1.5, "Hello\n there."), Segment(59.9996, 61.0, "a < b --> c & d"), Segment(3599.5, 3661.25, "x")),
)


def test_subrip() -> None:
    blocks = srt(SAID).split("\n\n")
    assert blocks.pop() == "" and [block.split("\n")[0] for block in blocks] == ["1", "2", "3"]
    clock = r"\d\d:[0-5]\d:[0-5]\d,\d{3}"
    assert all(re.fullmatch(rf"{clock} --> {clock}", block.split("\n")[1]) for block in blocks)
    assert [block.split("\n")[1] for block in blocks][1:] == [
        "00:01:00,000 --> 00:01:01,000",
        "00:59:59,500 --> 01:01:01,250",
    ]
    assert [block.split("\n")[2] for block in blocks] == ["Hello there.", "a < b → c & d", "x"]


def test_webvtt() -> None:
    head, *blocks, last = vtt(SAID).split("\n\n")
    assert head == "WEBVTT" and last == "" and len(blocks) == 3
    assert blocks[1] == "00:01:00.000 --> 00:01:01.000\na &lt; b → c &amp; d"


def test_captions_end_where_one_reads_them_well() -> None:
    texts = (
        "Well. This sentence goes on and on with words and more of them until a caption is full, and then there " * 2
    )
    words = [Word(text, i * 0.4, i * 0.4 + 0.35, 1.0) for i, text in enumerate(texts.split())]
    found = captions(Transcription(60.0, (Segment(0.0, 60.0, texts.strip(), "en", tuple(words)),)))
    assert " ".join(caption.text for caption in found).split() == texts.split()
    assert found[0].text == "Well." and max(len(caption.text) for caption in found) <= 84
    assert all(a.end_s <= b.start_s for a, b in pairwise(found))
    paused = [Word("a", 0.0, 0.2, 1.0), Word("b", 0.3, 0.5, 1.0), Word("c", 1.1, 1.2, 1.0)]
    found = captions(Transcription(2.0, (Segment(0.0, 2.0, "a b c", "en", tuple(paused)),)))
    assert [(c.text, c.start_s, c.end_s) for c in found] == [("a b", 0.0, 0.5), ("c", 1.1, 1.2)]
    assert srt(Transcription(1.0, ())) == "" and vtt(Transcription(1.0, ())) == "WEBVTT\n\n"
