"""The language spoken: what Whisper's tokenizer and the error rates need to know of it."""

from typing import Any

from torch import nn

from audiolora.speech.decode import is_multilingual
from audiolora.speech.normalizing import Normalizer, Rules
from audiolora.speech.prompts import BUILTIN


def spoken_language(data: str, language: str | None) -> str | None:
    """``language`` if it is given, else the one that a built-in set has in its name (``prompts-it``: ``"it"``)."""
    if language is None and data in BUILTIN and "-" in data:
        code = data.rpartition("-")[2]
        return code if len(code) == 2 else "en"
    return language


def set_language(model: nn.Module, processor: Any, language: str | None) -> str | None:
    """Make the tokenizer write a Whisper's prompt for this language.

    Args:
        model: the Whisper.
        processor: its ``WhisperProcessor``; changed in place.
        language: Whisper's code, such as ``"it"``.

    Returns:
        What to pass on to decoding: the language, or None for an English-only model, which takes none.

    Raises:
        ValueError: another language than English for an English-only model, or none for a multilingual one.
    """
    if not is_multilingual(model):
        if language not in (None, "en", "english"):
            raise ValueError(
                f"language {language!r} on an English-only Whisper; take a multilingual one such as openai/whisper-base"
            )
        return None
    if language is None:
        raise ValueError("a multilingual Whisper is trained on one language at a time; name it, such as language='it'")
    processor.tokenizer.set_prefix_tokens(language=language, task="transcribe", predict_timestamps=False)
    return language


def text_normalizer(processor: Any, language: str | None, rules: Rules = "auto") -> Normalizer:
    """What texts of a Whisper are compared by; English goes by its own table of spellings.

    Args:
        processor: its ``WhisperProcessor``.
        language: of the texts; None for an English-only Whisper's.
        rules: see `normalizing.Rules`.
    """
    spellings = getattr(processor.tokenizer, "english_spelling_normalizer", None)
    return Normalizer(rules, language or "en", spellings or {})
