"""The language spoken: what Whisper's tokenizer and the error rates need to know of it."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from audiolora.speech.data.prompts import BUILTIN
from audiolora.speech.data.rows import DataError
from audiolora.speech.data.utterance import Utterance
from audiolora.speech.texts.normalizing import Normalizer, Rules
from audiolora.speech.whisper.decoding import WhisperTexts
from audiolora.speech.whisper.labels import check_stamps
from audiolora.speech.whisper.language_tokens import is_multilingual, language_code

_LISTED = 20


def spoken_language(data: str, language: str | None) -> str | None:
    """``language`` if it is given, else the one that a built-in set has in its name (``prompts-it``: ``"it"``)."""
    if language is None and data in BUILTIN and "-" in data:
        code = data.rpartition("-")[2]
        return code if len(code) == 2 else "en"
    return language


def set_language(model: nn.Module, processor: Any, language: str | None, *, timestamps: bool = False) -> str | None:
    """Make the tokenizer write a Whisper's prompt for this language.

    Args:
        model: the Whisper.
        processor: its ``WhisperProcessor``; changed in place.
        language: Whisper's code or an English name, such as ``"it"`` or ``"Italian"``.
        timestamps: whether its texts are to have timestamp tokens: else the prompt says <|notimestamps|>.

    Returns:
        What to pass on to decoding: the language's code, or None for an English-only model, which takes none.

    Raises:
        ValueError: a language that the model has no token for, or none for a multilingual one.
    """
    if not is_multilingual(model):
        if language not in (None, "en", "english"):
            raise ValueError(
                f"language {language!r} on an English-only Whisper; take a multilingual one such as openai/whisper-base"
            )
        processor.tokenizer.set_prefix_tokens(predict_timestamps=timestamps)
        return None
    if language is None:
        raise ValueError(
            "a multilingual Whisper is told which language it hears; name it, such as language='it', or give the data "
            "a column 'language' with that of each row"
        )
    code = language_code(model, language)
    processor.tokenizer.set_prefix_tokens(language=code, task="transcribe", predict_timestamps=timestamps)
    return code


def set_languages(
    model: nn.Module, processor: Any, utterances: Sequence[Utterance], texts: WhisperTexts
) -> tuple[list[Utterance], str | None]:
    """Give each utterance the language token it is trained and decoded with, and the tokenizer its prompt.

    An utterance's own language holds, then that of `texts`; so one set may hold several. Region codes are cut off:
    "pt-BR" is "pt".

    Args:
        model: the Whisper.
        processor: its ``WhisperProcessor``; changed in place.
        utterances: of one or several languages.
        texts: see `WhisperTexts`; their timestamps are kept or dropped here.

    Returns:
        The utterances with Whisper's codes (None for an English-only model), and the code that all share, else None.

    Raises:
        DataError: languages that this Whisper does not know, without a token for them, or rows without any; by row.
        ValueError: a `language_token` that does nothing.
    """
    if not utterances:
        return [], None
    token = None if texts.language_token is None else language_code(model, texts.language_token)
    said = [utterance.language or texts.language for utterance in utterances]
    by_said = {one: _code(model, one, token) for one in dict.fromkeys(said)}  # few, of however many rows
    found = [by_said[one] for one in said]
    rows = zip(utterances, found, strict=True)
    faults = [f"{utterance.where}: {code}" for utterance, code in rows if isinstance(code, _Fault)]
    if faults:
        more = [f"… and {len(faults) - _LISTED} more"] if len(faults) > _LISTED else []
        raise DataError("\n  ".join([f"the language of {len(faults)} utterances:", *faults[:_LISTED], *more]))
    unknown = any(isinstance(_code(model, one), _Fault) for one in by_said)
    if texts.language_token is not None and not unknown:
        raise ValueError(
            f"language token {texts.language_token!r} does nothing: this Whisper knows every language of the data"
        )
    if texts.language is not None and all(one.language for one in utterances):
        if _code(model, texts.language, token) not in found:
            raise ValueError(
                f"language {texts.language!r} does nothing: every row says its own, and none says this one"
            )
    codes = [None if code is None else str(code) for code in found]
    set_language(model, processor, next(filter(None, codes), None), timestamps=texts.timestamps == "keep")
    kept = zip(check_stamps(utterances, texts.timestamps), codes, strict=True)
    told = [one if one.language == code else replace(one, language=code) for one, code in kept]
    return told, codes[0] if len(set(codes)) == 1 else None


class _Fault(str):
    """What is wrong with a language, in place of its code."""


def _code(model: nn.Module, said: str | None, token: str | None = None) -> str | None:
    """Whisper's code of a language as data write it; `token` for one that it does not know."""
    if said is None and is_multilingual(model):
        return _Fault("no language; name it with --language, or give the data a column 'language'")
    try:
        return language_code(model, None if said is None else said.replace("_", "-").partition("-")[0])
    except ValueError as error:
        return token or _Fault(error)


def compared_as(utterances: Sequence[Utterance]) -> str | None:
    """The language by whose rules texts are compared: English rules hold where nothing else is spoken."""
    others = [one.language for one in utterances if one.language not in (None, "en")]
    return others[0] if others else None


def text_normalizer(processor: Any, language: str | None, rules: Rules = "auto") -> Normalizer:
    """What texts of a Whisper are compared by; English goes by its own table of spellings.

    Args:
        processor: its ``WhisperProcessor``.
        language: of the texts; None for an English-only Whisper's.
        rules: see `normalizing.Rules`.
    """
    spellings = getattr(processor.tokenizer, "english_spelling_normalizer", None)
    return Normalizer(rules, language or "en", spellings or {})
