"""Pieces of audio: what their ids come to."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import WhisperProcessor

from audiolora.speech.texts.recordings import Piece
from audiolora.speech.whisper.decoding import WhisperDecoding
from audiolora.speech.whisper.generation import Decoded
from audiolora.speech.whisper.pieces import Heard, PieceDecoder
from tests.speech.whisper.test_decode import processor, random_whisper

__all__ = ["processor"]


@pytest.mark.parametrize(
    ("written", "times", "again_s"),
    [
        ("<|0.00|>a<|3.00|><|3.00|>b<|4.00|>", [(10.0, 13.0), (13.0, 14.0)], None),
        ("<|0.00|>a<|3.00|><|3.00|>b<|4.00|><|4.00|>c", [(10.0, 13.0), (13.0, 14.0)], 14.0),
        # behind the end of the audio, 5 s
        ("<|0.00|>a<|3.00|><|3.00|>b<|8.00|>", [(10.0, 13.0), (13.0, 15.0)], None),
        ("<|0.00|>a<|3.00|><|3.00|>b<|8.00|><|8.00|>c", [(10.0, 13.0), (13.0, 15.0)], None),
        ("<|0.00|>a<|6.00|><|6.00|>b<|8.00|><|8.00|>c", [(10.0, 15.0), (15.0, 15.0)], None),
    ],
)
def test_no_segment_ends_behind_its_piece(
    processor: WhisperProcessor, written: str, times: list[tuple[float, float]], again_s: float | None
) -> None:
    whisper = random_whisper(processor)
    decoder = PieceDecoder(whisper, processor, "transcribe", WhisperDecoding(), True, False, [], 440, False)
    heard = Heard(0, 0, Piece(10.0, 15.0), np.full(5 * 16_000, 0.1, np.float32), None)
    tokens = tuple(processor.tokenizer(written, add_special_tokens=False).input_ids)
    segments, rest = decoder._segments(heard, Decoded(tokens), None, torch.zeros(1), [])
    assert [(one.start_s, one.end_s) for one in segments] == times
    assert (None if rest is None else rest.piece.start_s) == again_s
