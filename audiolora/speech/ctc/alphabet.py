"""What a CTC model's outputs mean to a search: letters or word pieces, the blank, and what stands between words."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

PIECE = "▁"
"""What a word piece begins with that begins a word."""


@dataclass(frozen=True)
class Alphabet:
    """What a CTC model's outputs mean.

    Args:
        columns: outputs that a text is made of; special tokens other than the blank are left out.
        labels: the text of each: ``""`` for the blank, ``" "`` for the space between words.
        blank: the blank's place among them.
        lower: the tokenizer writes texts in lower case.
    """

    columns: tuple[int, ...]
    labels: tuple[str, ...]
    blank: int
    lower: bool = False

    @property
    def pieces(self) -> bool:
        """True for word pieces (``▁the``), False for letters and a space."""
        return any(label.startswith(PIECE) for label in self.labels)

    def spelled(self, word: str) -> str | None:
        """The word in the letters there are, in their case if need be; None if it cannot be written."""
        letters = set("".join(self.labels)) - {" ", PIECE}
        return next((one for one in (word, word.upper(), word.lower()) if set(one) <= letters), None)


@dataclass(frozen=True)
class DecodedWord:
    """A word and its frames: the first, and the one after the last."""

    text: str
    start: int
    end: int


def alphabet_of(tokenizer: Any) -> Alphabet:
    """What the outputs of this tokenizer's model mean.

    Args:
        tokenizer: transformers' ``Wav2Vec2CTCTokenizer``, or one of word pieces that begin words with ``▁``.

    Raises:
        ValueError: another kind of tokenizer.

    Example:
        >>> alphabet_of(processor.tokenizer).labels[:4]  # doctest: +SKIP
        ('', ' ', 'a', 'b')
    """
    delimiter = getattr(tokenizer, "word_delimiter_token", None)
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1])
    blank, special = tokenizer.pad_token_id, {i for i in tokenizer.all_special_ids if i is not None}
    columns, labels = [], []
    for token, column in vocabulary:
        if column == blank or token == delimiter or column not in special:
            columns.append(column)
            labels.append("" if column == blank else " " if token == delimiter else token)
    found = Alphabet(tuple(columns), tuple(labels), labels.index(""), bool(getattr(tokenizer, "do_lower_case", False)))
    ambiguous = [label for label in labels if label.startswith((PIECE, "##"))]
    if (not found.pieces and " " not in labels) or (delimiter is not None and ambiguous):
        raise ValueError(
            f"{type(tokenizer).__name__} has neither a word delimiter and letters nor word pieces that begin with "
            f"{PIECE}; beam search cannot tell its words (decode greedily, beam_width=1)"
        )
    return found


def words_of_path(path: Sequence[int] | np.ndarray, alphabet: Alphabet) -> tuple[DecodedWord, ...]:
    """The words of a path, repetitions joined and blanks taken out.

    Args:
        path: (frames,), a place among the alphabet's labels for each frame.
        alphabet: what they mean.
    """
    words: list[DecodedWord] = []
    end, begins = 0, True
    for i, group in itertools.groupby(path):
        start, end, label = end, end + sum(1 for _ in group), alphabet.labels[i]
        if label == " ":
            begins = True
        elif label:
            if begins or label.startswith(PIECE):
                words.append(DecodedWord("", start, end))
                begins = False
            words[-1] = DecodedWord(words[-1].text + label.removeprefix(PIECE), words[-1].start, end)
    return tuple(word for word in words if word.text)
