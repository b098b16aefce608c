"""From a Whisper and its processor, what `export.whisper_settings` says and the two files that go with it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from audiolora.export.tensors import write_tensors
from audiolora.export.whisper_settings import FILTERS_FILE, VOCABULARY_FILE, WhisperSettings
from audiolora.speech.whisper.context import FRAMES_PER_POSITION, ContextPolicy
from audiolora.speech.whisper.language_tokens import is_multilingual
from audiolora.speech.whisper.pieces import PROMPT_TOKENS, TOKENS_AT_LEAST, TOKENS_PER_S

if TYPE_CHECKING:
    from transformers import WhisperForConditionalGeneration, WhisperProcessor, WhisperTokenizer

# What transformers' generate would do besides, and the device does not.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "repetition_penalty": (None, 1.0),
    "no_repeat_ngram_size": (None, 0),
    "encoder_no_repeat_ngram_size": (None, 0),
    "encoder_repetition_penalty": (None, 1.0),
    "min_length": (None, 0),
    "min_new_tokens": (None, 0),
    "bad_words_ids": (None,),
    "sequence_bias": (None,),
    "forced_bos_token_id": (None,),
    "forced_eos_token_id": (None,),
    "exponential_decay_length_penalty": (None,),
    "no_speech_threshold": (None,),
    "logprob_threshold": (None,),
    "compression_ratio_threshold": (None,),
}


def settings_of(
    whisper: WhisperForConditionalGeneration,
    processor: WhisperProcessor,
    *,
    context: str,
    language: str | None = None,
    task: str = "transcribe",
) -> WhisperSettings:
    """How the device decodes: what `speech.decode.transcribe` does with this model.

    Args:
        whisper: the model, its generation config in it.
        processor: the model's.
        context: ``"auto"`` or ``"full"``, what the adapter was trained with; a plain Whisper needs "full".
        language: a code; None to detect each clip's, and for an English-only model, which may also be told "en".
        task: ``"transcribe"`` or ``"translate"``.

    Raises:
        ValueError: a language that the model does not know, or decoding rules that the device does not have.

    Example:
        >>> settings_of(whisper.model, whisper.processor, context="full").n_frames(16_000)  # doctest: +SKIP
        3000
    """
    rules, extractor = whisper.generation_config, processor.feature_extractor
    _check_rules(rules)
    multilingual = is_multilingual(whisper)
    needed = ["no_timestamps_token_id", *(["lang_to_id", "task_to_id"] if multilingual else [])]
    if missing := [name for name in needed if getattr(rules, name, None) is None]:
        raise ValueError(
            f"the model's generation_config has no {', '.join(missing)}, which transcription needs; take that of the "
            "Whisper that it comes from: model.generation_config = GenerationConfig.from_pretrained(…)"
        )
    policy = ContextPolicy("auto")
    after = [rules.task_to_id[task]] if multilingual else []
    return WhisperSettings(
        sample_rate_hz=extractor.sampling_rate,
        n_fft=extractor.n_fft,
        hop=extractor.hop_length,
        n_mels=extractor.feature_size,
        max_frames=min(extractor.nb_max_frames, whisper.config.max_source_positions * FRAMES_PER_POSITION),
        context=context,
        multiple_frames=policy.multiple_frames,
        floor_frames=policy.floor_frames,
        start=rules.decoder_start_token_id,
        languages={token[2:-2]: number for token, number in rules.lang_to_id.items()} if multilingual else {},
        language=None if not multilingual and language == "en" else language,
        after=(*after, rules.no_timestamps_token_id),
        end=_end(rules.eos_token_id),
        suppressed=tuple(rules.suppress_tokens or ()),
        begin_suppressed=tuple(rules.begin_suppress_tokens or ()),
        max_tokens=whisper.config.max_target_positions - PROMPT_TOKENS,
        tokens_per_s=TOKENS_PER_S,
        tokens_at_least=TOKENS_AT_LEAST,
    )


def task_name(whisper: Any, settings: WhisperSettings) -> Any:
    """What `speech.decode.transcribe` calls the task of these settings: ``"transcribe"`` or ``"translate"``."""
    if not settings.languages:
        return "transcribe"
    return next(name for name, token in whisper.generation_config.task_to_id.items() if token == settings.after[0])


def files_of(processor: WhisperProcessor, vocabulary_size: int) -> dict[str, bytes]:
    """The base's files besides graphs: the features' filters and window, and the vocabulary.

    Args:
        processor: the model's.
        vocabulary_size: tokens that the model can write.
    """
    import torch

    extractor = processor.feature_extractor
    filters = {
        "filters": np.ascontiguousarray(extractor.mel_filters, np.float32),
        "window": torch.hann_window(extractor.n_fft).numpy(),
    }
    pieces = [piece.decode("latin-1") for piece in vocabulary(processor.tokenizer, vocabulary_size)]
    return {FILTERS_FILE: write_tensors(filters), VOCABULARY_FILE: json.dumps(pieces, ensure_ascii=False).encode()}


def vocabulary(tokenizer: WhisperTokenizer, size: int) -> list[bytes]:
    """Each token's bytes; none for special tokens and for numbers that the tokenizer does not know."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    bytes_of = {letter: byte for byte, letter in bytes_to_unicode().items()}
    special, added = set(tokenizer.all_special_ids), set(tokenizer.get_added_vocab().values())
    found = []
    for number in range(size):
        piece = tokenizer.convert_ids_to_tokens(number) if number < len(tokenizer) else None
        if piece is None or number in special:
            found.append(b"")
        elif number in added:
            found.append(piece.encode())
        else:
            found.append(bytes(bytes_of[letter] for letter in piece))
    return found


def _check_rules(rules: Any) -> None:
    values = {name: getattr(rules, name, None) for name in _NEUTRAL}
    if odd := [name for name, value in values.items() if value not in _NEUTRAL[name]]:
        told = ", ".join(f"{name}={values[name]!r}" for name in odd)
        raise ValueError(
            f"the model's generation_config sets {told}, and a device decodes greedily without it; set it to None in "
            "model.generation_config"
        )


def _end(tokens: int | list[int]) -> int:
    listed = tokens if isinstance(tokens, list) else [tokens]
    if len(listed) != 1:
        raise ValueError(
            f"generation_config.eos_token_id must be one token, got {tokens}; name the one that ends a text"
        )
    return listed[0]
