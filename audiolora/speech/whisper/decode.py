"""From audio to text: clips and recordings of any length, in batches, as a Whisper or its adapter was trained to hear.

What is longer than a piece is cut where it is quiet (`audiolora.speech.texts.recordings`), its pieces are decoded like
clips, and joined (`audiolora.speech.texts.transcription`). Pieces of one context are batched together, and whatever is
drawn is seeded by the piece, so a text does not depend on what stands beside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from audiolora.speech.texts.recordings import Recording, pieces_of, portions, recording_of
from audiolora.speech.texts.transcribing import evaluating, progress_bar
from audiolora.speech.texts.transcription import Segment, Transcription, joined
from audiolora.speech.whisper.context import MAX_FRAMES, ContextMode, ContextPolicy
from audiolora.speech.whisper.decoding import WhisperDecoding
from audiolora.speech.whisper.features import HOP_SAMPLES, SAMPLE_RATE_HZ, log_mel
from audiolora.speech.whisper.language_tokens import is_multilingual, language_code, prompt_ids, whisper_of
from audiolora.speech.whisper.pieces import PROMPT_TOKENS, Heard, PieceDecoder

if TYPE_CHECKING:
    from transformers import WhisperForConditionalGeneration, WhisperProcessor

__all__ = ["HOP_SAMPLES", "SAMPLE_RATE_HZ", "is_multilingual", "log_mel", "transcribe", "transcribe_recordings"]

LONGEST_PIECE_S = MAX_FRAMES * HOP_SAMPLES / SAMPLE_RATE_HZ

GREEDY = WhisperDecoding()


def transcribe(
    model: torch.nn.Module,
    processor: WhisperProcessor,
    audios: Sequence[np.ndarray],
    *,
    context: ContextMode | ContextPolicy = "auto",
    language: str | Sequence[str | None] | None = None,
    task: Literal["transcribe", "translate"] = "transcribe",
    decoding: WhisperDecoding = GREEDY,
    timestamps: bool = False,
    batch_size: int = 8,
    piece_s: float = LONGEST_PIECE_S,
    progress: bool = True,
    max_new_tokens: int | None = None,
    names: Sequence[str] | None = None,
) -> list[str]:
    """Transcribe clips and recordings of any length into texts.

    Args:
        model: a Whisper, bare or wrapped (PEFT, DistributedDataParallel); its train/eval modes are left as they were.
        processor: the model's processor.
        audios: clips (L,), 16 kHz, mono, float.
        context: what the encoder sees: each piece's own length ("auto", and "mix" too) or 30 s ("full"). Take the one
            that the model or adapter was trained with: a plain Whisper needs "full".
        language: code or English name of the language spoken ("it", "italian"), or one for each clip; None lets a
            multilingual model detect it for each piece. English-only models know "en" alone.
        task: "transcribe", or "translate" into English (multilingual models).
        decoding: greedy unless it says otherwise.
        timestamps: decode with Whisper's timestamp tokens, as an adapter needs that was trained to write them.
        batch_size: pieces a batch.
        piece_s: what is longer is cut into pieces of at most this; at least 1 s, at most 30 s.
        progress: show a progress bar.
        max_new_tokens: the longest text of a piece, tokens. None allows 24 a second of audio and 16 more, several times
            what speech takes, so that a looping model stops early. Whisper itself ends at 448 with the prompt.
        names: what error messages call the clips, for example their files.

    Returns:
        The texts in the order of `audios`.

    Raises:
        ValueError: a clip is empty or not finite; an unknown language or task; a number out of range.
        TypeError: `model` holds no Whisper.

    Example:
        >>> transcribe(whisper.model, whisper.processor, [samples], context="full")  # doctest: +SKIP
        ['You entered the code correctly.']
    """
    if names is not None and len(names) != len(audios):
        raise ValueError(f"names must have one entry a clip: {len(names)} names, {len(audios)} clips")
    called = [f"clip {index}" if names is None else f"clip {index} ({names[index]})" for index in range(len(audios))]
    found = transcribe_recordings(
        model,
        processor,
        [recording_of(audio, name) for audio, name in zip(audios, called, strict=True)],
        context=context,
        language=language,
        task=task,
        decoding=decoding,
        timestamps=timestamps,
        batch_size=batch_size,
        piece_s=piece_s,
        progress=progress,
        max_new_tokens=max_new_tokens,
    )
    return [transcription.text for transcription in found]


def transcribe_recordings(
    model: torch.nn.Module,
    processor: WhisperProcessor,
    recordings: Sequence[Recording],
    *,
    context: ContextMode | ContextPolicy = "auto",
    language: str | Sequence[str | None] | None = None,
    task: Literal["transcribe", "translate"] = "transcribe",
    decoding: WhisperDecoding = GREEDY,
    timestamps: bool = False,
    words: bool = False,
    batch_size: int = 8,
    piece_s: float = LONGEST_PIECE_S,
    progress: bool = True,
    max_new_tokens: int | None = None,
) -> list[Transcription]:
    """Transcribe recordings, files or samples, into segments with their times.

    Without `timestamps` a segment is a piece: the whole recording, or what was cut where it is quiet. At most an hour
    of audio is in memory at once, whatever the recordings last.

    Args:
        recordings: from `open_recording` and `recording_of`.
        timestamps: decode with Whisper's timestamp tokens and make a segment of each stretch they set apart; an adapter
            trained without them has forgotten them.
        words: tell each word's times, from the cross-attention; a segment's times are then its words'.

    The other arguments are those of `transcribe`, and so are the errors.

    Returns:
        One for each recording, in order.

    Example:
        >>> found = transcribe_recordings(model, processor, [open_recording(Path("a.wav"))])  # doctest: +SKIP
        >>> found[0].segments[0].start_s  # doctest: +SKIP
        0.0
    """
    whisper = whisper_of(model)
    languages = _languages(whisper, language, task, len(recordings))
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if not 1 <= piece_s <= LONGEST_PIECE_S:
        raise ValueError(f"piece_s must be between 1 and 30 s, got {piece_s}")
    before = prompt_ids(processor.tokenizer, decoding.prompt, whisper.config.max_target_positions // 2 - 1)
    policy = context if isinstance(context, ContextPolicy) else ContextPolicy(context)
    decoder = PieceDecoder(
        whisper,
        processor,
        task,
        decoding,
        timestamps,
        words,
        before,
        _token_limit(whisper, max_new_tokens, len(before)),
        max_new_tokens is not None,
    )
    plans = [pieces_of(recording, piece_s) for recording in recordings]
    found: list[list[list[Segment]]] = [[[] for _ in plan] for plan in plans]
    total = sum(map(len, plans))
    # no_grad and not inference_mode: a tensor that an adapter layer caches here may be met by a later backward
    with torch.no_grad(), evaluating(model), progress_bar(total, progress) as advance:
        for read in portions(recordings, plans):
            portion = [Heard(r.recording, r.index, r.piece, r.samples, languages[r.recording]) for r in read]
            while portion:
                again: list[Heard] = []
                for n_frames, batch in _batches(policy, portion, batch_size):
                    for heard, (segments, rest) in zip(batch, decoder.decode(n_frames, batch), strict=True):
                        found[heard.recording][heard.index] += segments
                        again += [] if rest is None else [rest]
                        advance(rest is None)
                portion = again
    return [
        Transcription(recording.duration_s, tuple(joined(plan, segments)))
        for recording, plan, segments in zip(recordings, plans, found, strict=True)
    ]


def _languages(
    whisper: WhisperForConditionalGeneration, language: str | Sequence[str | None] | None, task: str, n_clips: int
) -> list[str | None]:
    if language is None or isinstance(language, str):
        return [language_code(whisper, language, task)] * n_clips
    if len(language) != n_clips:
        raise ValueError(f"language must be one, or one a clip: {len(language)} languages, {n_clips} clips")
    codes = {one: language_code(whisper, one, task) for one in set(language)}
    return [codes[one] for one in language]


def _batches(policy: ContextPolicy, portion: Sequence[Heard], batch_size: int) -> Iterator[tuple[int, list[Heard]]]:
    """(context in frames, pieces), longest pieces first: what does not fit in memory fails at once."""
    by_context: dict[int, list[Heard]] = {}
    for heard in sorted(portion, key=lambda heard: -heard.duration_s):
        by_context.setdefault(policy.n_frames([heard.duration_s]), []).append(heard)
    for n_frames, alike in by_context.items():
        for start in range(0, len(alike), batch_size):
            yield n_frames, alike[start : start + batch_size]


def _token_limit(whisper: WhisperForConditionalGeneration, max_new_tokens: int | None, n_prompt: int) -> int:
    room = whisper.config.max_target_positions - PROMPT_TOKENS - n_prompt
    if max_new_tokens is not None and not 0 < max_new_tokens <= room:
        raise ValueError(f"max_new_tokens must be between 1 and {room}, got {max_new_tokens}")
    return room if max_new_tokens is None else max_new_tokens
