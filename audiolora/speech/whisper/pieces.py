"""Batches of pieces of audio, decoded into segments."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from audiolora.speech.texts.recordings import SILENCE, Piece
from audiolora.speech.texts.transcription import Segment, heard_until, split_at_timestamps, with_words
from audiolora.speech.whisper.context import audio_context
from audiolora.speech.whisper.decoding import WhisperDecoding
from audiolora.speech.whisper.features import SAMPLE_RATE_HZ, log_mel
from audiolora.speech.whisper.generation import Decoded, encode, generate
from audiolora.speech.whisper.language_tokens import start_ids
from audiolora.speech.whisper.word_times import word_times

if TYPE_CHECKING:
    from transformers import WhisperForConditionalGeneration, WhisperProcessor

# Speech makes 3-7 tokens a second in Latin scripts, up to about 20 in scripts that the vocabulary spells by the byte.
TOKENS_PER_S = 24
TOKENS_AT_LEAST = 16
REST_S = 0.2  # less of a piece is not decoded again
PROMPT_TOKENS = 4  # start, language, task, no timestamps


@dataclass(frozen=True)
class Heard:
    """A piece and its samples."""

    recording: int
    index: int
    piece: Piece
    samples: np.ndarray
    language: str | None

    @property
    def duration_s(self) -> float:
        return len(self.samples) / SAMPLE_RATE_HZ

    def after(self, time_s: float) -> Heard | None:
        """What follows a time in the piece; None where nothing is heard there."""
        samples = self.samples[round(time_s * SAMPLE_RATE_HZ) :]
        if len(samples) < REST_S * SAMPLE_RATE_HZ or np.square(samples).max() < SILENCE:
            return None
        return replace(self, piece=replace(self.piece, start_s=self.piece.start_s + time_s), samples=samples)


@dataclass(frozen=True)
class PieceDecoder:
    """Decodes batches of pieces.

    Args:
        whisper: bare.
        processor: the model's processor.
        task: "transcribe" or "translate".
        decoding: see `WhisperDecoding`.
        timestamps: with timestamp tokens.
        words: with the times of words.
        before: ids of the prompt.
        limit: the most new tokens of a piece.
        limit_is_asked: whether it is for each piece, or bounds what its length allows.
    """

    whisper: WhisperForConditionalGeneration
    processor: WhisperProcessor
    task: str
    decoding: WhisperDecoding
    timestamps: bool
    words: bool
    before: list[int]
    limit: int
    limit_is_asked: bool

    def decode(self, n_frames: int, batch: Sequence[Heard]) -> list[tuple[list[Segment], Heard | None]]:
        """Each piece's segments, and what of it is to be decoded once more, by `heard_until`."""
        if all(heard.piece.silent for heard in batch):
            return [([], None) for _ in batch]
        features = torch.stack([log_mel(self.processor, heard.samples, n_frames) for heard in batch])
        with audio_context(self.whisper, n_frames):
            hidden = encode(self.whisper, features)
            languages = [heard.language for heard in batch]
            starts, languages = start_ids(self.whisper, languages, self.task, timestamps=self.timestamps, hidden=hidden)
            decoded = generate(
                self.whisper,
                self.processor.tokenizer,
                hidden,
                [[*self.before, *start] for start in starts],
                [self._budget(heard.duration_s) for heard in batch],
                [zlib.crc32(heard.samples.tobytes()) for heard in batch],
                self.decoding,
                timestamps=self.timestamps,
            )
            rows = zip(batch, decoded, languages, hidden, starts, strict=True)
            return [([], None) if row[0].piece.silent else self._segments(*row) for row in rows]

    def _budget(self, duration_s: float) -> int:
        return self.limit if self.limit_is_asked else min(self.limit, _tokens_allowed(duration_s))

    def _segments(
        self, heard: Heard, decoded: Decoded, language: str | None, hidden: torch.Tensor, start: list[int]
    ) -> tuple[list[Segment], Heard | None]:
        piece, rest = heard.piece, None
        if self.timestamps:
            first = self.whisper.generation_config.no_timestamps_token_id + 1
            tokens, again_s = heard_until(decoded.tokens, first)
            rest = None if again_s is None else heard.after(again_s)
            # it may write times behind the end of a clip that it hears with silence behind it
            end_s = piece.end_s if again_s is None else min(piece.start_s + again_s, piece.end_s)
            stretches = split_at_timestamps(tokens, first, piece.start_s, end_s)
        else:
            stretches = [(piece.start_s, piece.end_s, list(decoded.tokens))]
        tokenizer, judged = self.processor.tokenizer, self.decoding.fallback
        segments = [
            Segment(
                round(start_s, 3),
                round(end_s, 3),
                tokenizer.decode(tokens, skip_special_tokens=True).strip(),
                language,
                temperature=decoded.temperature,
                log_probability=decoded.log_probability,
                compression_ratio=decoded.compression_ratio if judged else None,
                no_speech=decoded.no_speech,
            )
            for start_s, end_s, tokens in stretches
        ]
        if self.words:
            segments = self._with_words(segments, [tokens for *_, tokens in stretches], heard, hidden, start)
        return [segment for segment in segments if segment.text], rest

    def _with_words(
        self,
        segments: Sequence[Segment],
        tokens: Sequence[list[int]],
        heard: Heard,
        hidden: torch.Tensor,
        start: Sequence[int],
    ) -> list[Segment]:
        """The piece's words are timed together, and each segment takes as many as its own tokens make."""
        config, tokenizer = self.whisper.generation_config, self.processor.tokenizer
        if self.timestamps:
            start = [*start, config.no_timestamps_token_id]
        result = []
        own_tokens = [[token for token in ids if token < config.eos_token_id] for ids in tokens]
        timed = word_times(
            self.whisper,
            tokenizer,
            hidden,
            start,
            own_tokens,
            heard.duration_s,
            segments[0].language if segments else None,
        )
        for segment, words in zip(segments, timed, strict=True):
            offset = heard.piece.start_s
            moved = [replace(w, start_s=round(w.start_s + offset, 2), end_s=round(w.end_s + offset, 2)) for w in words]
            result.append(with_words(segment, moved) if moved else segment)
        return result


def _tokens_allowed(duration_s: float) -> int:
    return TOKENS_AT_LEAST + math.ceil(TOKENS_PER_S * duration_s)
