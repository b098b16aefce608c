"""What is done to texts before they are compared: the rules by name, per language, without any model's processor.

Whisper's own rules (Radford et al., 2022, appendix C) are made for English; for other languages they replace every
combining mark by a space, which cuts words of Hindi, Tamil, Thai and other scripts to pieces and makes others of them
(Manohar and Pillai, arXiv 2409.02449). So marks are kept here unless Whisper's rules are asked for.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

Rules = Literal["auto", "whisper", "basic", "language", "none"]
"""What is done to texts before they are compared.

auto: whisper for English, basic for any other language.
whisper: Whisper's own rules, as in its paper's tables.
basic: lower case, no punctuation, no [notes]; marks are kept.
language: whisper-normalizer's rules for the language (numbers, letters that are spelled in several ways), then basic.
none: texts as they are.
"""

UNSPACED = frozenset({"zh", "yue", "ja", "th", "lo", "km", "my", "bo"})
"""Languages written without spaces between words: a "word" of theirs is a character here, and CER the measure."""

_DOTTED_I = frozenset({"tr", "az"})  # languages where I is the capital of ı, and İ of i
_ENGLISH = frozenset({"en", "english"})
_SPACELESS_SCRIPTS = ("CJK ", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN", "BOPOMOFO")
_OF_LIBRARY = {
    **{code: ("international", name) for code, name in {
        "fr": "French", "es": "Spanish", "ar": "Arabic", "zh": "Chinese", "ru": "Russian"}.items()},
    **{code: ("indic", name) for code, name in {
        "hi": "Hindi", "pa": "Punjabi", "te": "Telugu", "gu": "Gujarati", "or": "Odia", "bn": "Bengali", "ta": "Tamil",
        "kn": "Kannada", "ml": "Malayalam"}.items()},
}  # fmt: skip


@dataclass(frozen=True)
class Normalizer:
    """Rules for the texts of one language; call it with a text.

    Args:
        rules: see `Rules`.
        language: code of the texts' language; None if it is not known.
        spellings: for English by Whisper's rules, British to American spelling: Whisper's processor brings the table.

    Raises:
        ValueError: unknown rules, or ``language`` for a language that the library has no rules for.

    Example:
        >>> Normalizer("basic", "hi")("नमस्ते, दुनिया!")
        'नमस्ते दुनिया'
    """

    rules: Rules = "auto"
    language: str | None = None
    spellings: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known = Rules.__args__  # type: ignore[attr-defined]
        if self.rules not in known:
            raise ValueError(f"normalize must be one of {', '.join(known)}, got {self.rules!r}")
        if self.rules == "language" and self._code not in _OF_LIBRARY:
            raise ValueError(
                f"normalize='language': there are no rules for language {self.language!r}, only for "
                f"{', '.join(sorted(_OF_LIBRARY))}; take basic"
            )

    @property
    def unspaced(self) -> bool:
        """True where the language has no spaces: what counts as a word is a character."""
        return self._code in UNSPACED and self.rules in ("auto", "basic", "language")

    @property
    def applied(self) -> str:
        """The rules that ``auto`` stands for."""
        return self.rules if self.rules != "auto" else "whisper" if self._english else "basic"

    def record(self) -> dict[str, Any]:
        """What a run writes down: with equal records, error rates are of equal rules.

        Example:
            >>> Normalizer("auto", "it").record()
            {'rules': 'basic', 'language': 'it', 'spellings': 0}
        """
        spellings = len(self.spellings) if self.applied == "whisper" and self._english else 0
        return {"rules": self.applied, "language": self.language, "spellings": spellings}

    def __call__(self, text: str) -> str:
        """The text as it is compared."""
        return self._function(text)

    @property
    def _code(self) -> str:
        return _without_region(self.language)

    @property
    def _english(self) -> bool:
        return self._code in _ENGLISH

    @cached_property
    def _function(self) -> Callable[[str], str]:
        if self.applied == "none":
            return lambda text: text
        from transformers.models.whisper.english_normalizer import BasicTextNormalizer, EnglishTextNormalizer

        if self.applied == "whisper":
            whole: Callable[[str], str] = EnglishTextNormalizer(dict(self.spellings)) if self._english else (
                BasicTextNormalizer()
            )  # fmt: skip
            return whole
        basic = BasicTextNormalizer()
        basic.clean = without_symbols
        own = _of_library(self._code) if self.applied == "language" else str
        folded = str.maketrans({"I": "ı", "İ": "i"} if has_dotless_i(self.language) else {})

        def normalize(text: str) -> str:
            # composed first: of an İ that is I and a dot, the I would be folded alone
            found: str = basic(own(unicodedata.normalize("NFC", text)).translate(folded)).strip()
            return apart(found) if self.unspaced else found

        return normalize


def has_dotless_i(language: str | None) -> bool:
    """Whether I is the capital of ı, and İ of i, as in Turkish and Azeri.

    Example:
        >>> has_dotless_i("tr-TR"), has_dotless_i("en"), has_dotless_i(None)
        (True, False, False)
    """
    return _without_region(language) in _DOTTED_I


def _without_region(language: str | None) -> str:
    return (language or "").lower().partition("-")[0].partition("_")[0]


def without_symbols(text: str) -> str:
    """NFKC, with each symbol and punctuation mark a space; letters' marks stay.

    Example:
        >>> without_symbols("क्या?")
        'क्या '
    """
    normal = unicodedata.normalize("NFKC", text)
    return "".join(" " if unicodedata.category(character)[0] in "SP" else character for character in normal)


def apart(text: str) -> str:
    """Characters of scripts that have no spaces set apart, each with its marks; words of other scripts stay whole.

    Example:
        >>> apart("我用 python 三")
        '我 用 python 三'
    """
    pieces: list[str] = []
    for character in text:
        if unicodedata.category(character)[0] == "M" and pieces:
            pieces[-1] = pieces[-1].rstrip() + character + (" " if pieces[-1].endswith(" ") else "")
        else:
            spaceless = unicodedata.name(character, "").startswith(_SPACELESS_SCRIPTS)
            pieces.append(f" {character} " if spaceless else character)
    return " ".join("".join(pieces).split())


def _of_library(code: str) -> Callable[[str], str]:
    """The rules of whisper-normalizer."""
    from importlib import import_module

    module, name = _OF_LIBRARY[code]
    try:
        found = import_module(f"whisper_normalizer.{module}")
    except ImportError as error:
        raise ImportError(
            f"normalize='language' needs the extra audiolora[normalize]: pip install 'audiolora[normalize]' ({error})"
        ) from None
    suffix = "TextNormalizer" if module == "international" else "Normalizer"
    rules: Callable[[str], str] = getattr(found, name + suffix)()
    return rules
