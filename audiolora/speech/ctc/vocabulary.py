"""The alphabet that a CTC model writes: built from texts, put on a model as a new head, and texts spelled in it.

A CTC model has one output a token (Graves et al., ICML 2006). In an alphabet made here output 0 is the blank
(``<pad>``), output 1 stands for what is unknown (``<unk>``, never trained on), output 2 for the space between words
(``|``): the names of the wav2vec2 models on the hub.
"""

from __future__ import annotations

import json
import re
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from audiolora.speech.texts.normalizing import has_dotless_i

if TYPE_CHECKING:
    from transformers import Wav2Vec2CTCTokenizer

BLANK, UNKNOWN, DELIMITER = "<pad>", "<unk>", "|"
"""The first three tokens of an alphabet made here."""

Case = Literal["lower", "upper", "kept"]

_APOSTROPHES = dict.fromkeys(map(ord, "’‘ʼ`´＇"), "'")
_LONE_ACCENTS = dict.fromkeys(map(ord, "¨¯¸˘˙˚˛˜˝΄￣"), " ")
# Punctuation that is read out as a word: dropping it would make a transcript that is not what is said.
_SPOKEN = frozenset("%&@#*§/\\†‰")


@dataclass(frozen=True)
class Vocabulary:
    """An alphabet for a CTC model.

    Args:
        letters: one token each, in the order of the model's outputs after blank, unknown and delimiter.

    Raises:
        ValueError: none, one twice, one that is a space, empty or among the first three.

    Example:
        >>> Vocabulary(("a", "b")).tokens
        ('<pad>', '<unk>', '|', 'a', 'b')
    """

    letters: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.letters:
            raise ValueError("an alphabet needs letters, and there are none; give texts that have some")
        for letter, count in Counter(self.letters).items():
            if count > 1:
                raise ValueError(f"letter {letter!r} stands in the alphabet {count} times")
            if not letter.strip() or letter in (BLANK, UNKNOWN, DELIMITER):
                raise ValueError(f"{letter!r} cannot be a letter: {BLANK}, {UNKNOWN} and {DELIMITER} stand for spaces "
                                 "and what is no letter")  # fmt: skip

    @property
    def tokens(self) -> tuple[str, ...]:
        """The text of each output."""
        return (BLANK, UNKNOWN, DELIMITER, *self.letters)


def build_vocabulary(
    texts: Iterable[str], *, case: Case = "lower", language: str | None = None, min_count: int = 1
) -> Vocabulary:
    """The alphabet of these texts: their letters, accents, digits and apostrophes inside words, sorted.

    Args:
        texts: transcripts.
        case: fold letters to lower or to upper case, or keep both.
        language: code of the texts' language; Turkish and Azeri fold I and İ in their own way.
        min_count: letters that stand in the texts fewer times are left out; texts with them are then told by `encoder`.

    Raises:
        ValueError: another case, ``min_count`` below 1, or no letter is left.

    Example:
        >>> build_vocabulary(["Don’t STOP!", "stop"]).letters
        ("'", 'd', 'n', 'o', 'p', 's', 't')
    """
    if case not in ("lower", "upper", "kept"):
        raise ValueError(f"case must be 'lower', 'upper' or 'kept', got {case!r}")
    if min_count < 1:
        raise ValueError(f"min_count must be at least 1, got {min_count}")
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(_bare(_folded(text, case, language), None))
    found = sorted(letter for letter, count in counts.items() if count >= min_count and _can_be_letter(letter))
    if not found:
        raise ValueError(f"no letter stands in these texts at least {min_count} times; an alphabet needs some")
    return Vocabulary(tuple(found))


def spelling(processor: Any, *, language: str | None = None) -> Callable[[str], str]:
    """What writes a transcript as a model's alphabet has it: its case, spaces for dashes, no silent punctuation.

    A letter, digit or symbol that is read out (``%``, ``&``) is left as it is, in the alphabet or not: `encoder` tells.

    Args:
        processor: of a CTC model.
        language: as in `build_vocabulary`.

    Returns:
        text → text. For a tokenizer of pieces of words (Parakeet's) it only makes white space single.
    """
    tokens = _alphabet(processor.tokenizer)
    if tokens is None:
        return lambda text: " ".join(text.split())
    letters = frozenset(tokens) - {processor.tokenizer._word_delimiter_token}
    case = _case_of(letters)
    return lambda text: " ".join("".join(_bare(_folded(text, case, language), letters)).split())


def encoder(processor: Any, *, language: str | None = None) -> Callable[[str], list[int]]:
    """What turns a transcript into a CTC model's targets.

    Args:
        processor: of a CTC model.
        language: as in `build_vocabulary`.

    Returns:
        text → token ids, without special tokens. It raises ValueError for a text outside the alphabet and names the
        letters; `check_utterances` puts the row before it.
    """
    spell, tokenizer = spelling(processor, language=language), processor.tokenizer
    unknown = tokenizer.unk_token_id
    # A transcript that holds "<pad>" would become a blank.
    special = [token for token in tokenizer.all_special_tokens if len(token) > 1]

    def encode(text: str) -> list[int]:
        spelled = spell(text)
        ids: list[int] = tokenizer(spelled, add_special_tokens=False).input_ids
        if unknown in ids or None in ids or any(token in spelled for token in special):
            outside = [letter for letter in dict.fromkeys(spelled.replace(" ", "")) if _unknown(tokenizer, letter)]
            raise ValueError(
                f"{', '.join(map(repr, outside)) or repr(tokenizer.unk_token)} not in the model's vocabulary; write "
                "digits and symbols out as words, mend the text, or build a new alphabet"
            )
        return ids

    return encode


def make_tokenizer(vocabulary: Vocabulary) -> Wav2Vec2CTCTokenizer:
    """transformers' tokenizer of an alphabet, without the ``<s>`` and ``</s>`` that no CTC model needs."""
    from transformers import Wav2Vec2CTCTokenizer

    with tempfile.TemporaryDirectory(prefix="audiolora-vocabulary-") as folder:
        file = Path(folder) / "vocab.json"
        file.write_text(json.dumps({token: i for i, token in enumerate(vocabulary.tokens)}), encoding="utf-8")
        return Wav2Vec2CTCTokenizer(
            str(file),
            bos_token=None,
            eos_token=None,
            unk_token=UNKNOWN,
            pad_token=BLANK,
            word_delimiter_token=DELIMITER,
        )


def _unknown(tokenizer: Any, text: str) -> bool:
    ids = tokenizer(text, add_special_tokens=False).input_ids
    return tokenizer.unk_token_id in ids or None in ids


def _alphabet(tokenizer: Any) -> list[str] | None:
    """The tokens of a tokenizer of letters by their number; None for one of pieces of words."""
    encoder = getattr(tokenizer, "encoder", None)
    return None if encoder is None else sorted(encoder, key=encoder.__getitem__)


def _case_of(letters: Iterable[str]) -> Case:
    one = [letter for letter in letters if len(letter) == 1]
    upper, lower = any(map(str.isupper, one)), any(map(str.islower, one))
    return "kept" if upper == lower else "upper" if upper else "lower"


def _folded(text: str, case: Case, language: str | None) -> str:
    # Before NFKC, which makes a space and a combining mark, a letter's, of an accent that stands alone (´ ¨).
    text = unicodedata.normalize("NFKC", text.translate(_APOSTROPHES).translate(_LONE_ACCENTS))
    if case == "kept":
        return text
    if has_dotless_i(language):
        text = text.replace("I", "ı").replace("İ", "i") if case == "lower" else text.replace("i", "İ")
    return unicodedata.normalize("NFC", text.lower() if case == "lower" else text.upper())


def _bare(text: str, letters: frozenset[str] | None) -> str:
    """Without punctuation that is not read out: the alphabet's own stays, and apostrophes inside words.

    Args:
        letters: the alphabet; None while one is built.
    """

    def bare(match: re.Match[str]) -> str:
        mark, before, after = match[0], text[: match.start()][-1:], text[match.end() :][:1]
        if mark == "'":
            inside = _is_letter(before) and _is_letter(after)
            return mark if inside and (letters is None or mark in letters) else ""
        if (letters is not None and mark in letters) or not _is_silent(mark):
            return mark
        return "" if unicodedata.category(mark) == "Cf" else " "

    return re.sub(r"[^\w\s]|_", bare, text)


def _is_letter(mark: str) -> bool:
    """Or a digit; also what is written on a letter, where the two are no letter of their own (ọ̀)."""
    return mark != "" and (mark.isalnum() or unicodedata.category(mark)[0] == "M")


def _is_silent(mark: str) -> bool:
    category = unicodedata.category(mark)
    return mark == DELIMITER or (category[0] == "P" and mark not in _SPOKEN) or category in ("Cf", "Sk")


def _can_be_letter(letter: str) -> bool:
    return unicodedata.category(letter)[0] in "LM" or unicodedata.category(letter) == "Nd" or letter == "'"
