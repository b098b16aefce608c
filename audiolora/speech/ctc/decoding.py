"""How a CTC model's frames become text, as settings; light to import, so that ``--help`` is quick."""

from __future__ import annotations

import math
from dataclasses import dataclass

WIDE = 100
"""Prefixes kept where a language model or hotwords are to choose between them."""

_OF_LM = ("alpha", "beta", "unknown_word")


@dataclass(frozen=True)
class CtcDecoding:
    """How a CTC model's frames become text: greedy, by beam search, with a language model of words, with hotwords.

    A text's score is log P_acoustic + alpha · ln P_lm + beta · words (Hannun et al., arXiv 1408.2873, equation 3), and
    hotword_weight for each hotword in it. alpha and beta are worth choosing on the development split. What is left at
    None is its default, named below.

    Args:
        beam_width: prefixes kept from frame to frame; 1 takes each frame's best token (greedy). 1, or 100 with a
            language model or hotwords.
        lm: n-gram model of words: an ARPA file (.arpa, .arpa.gz), or KenLM's binary with the list of its words beside
            it as unigrams.txt. Needs the extra audiolora[lm], as hotwords do.
        alpha: weight of the language model (0.5).
        beta: for each word, against the language model's liking for few of them (1.5).
        unknown_word: added where a word, or its beginning, is none of the language model's (-10).
        hotwords: words to be heard more easily, such as names; each word of a phrase counts alone.
        hotword_weight: for each of them, in nats (10).

    Raises:
        ValueError: a number out of its range, or an option that does nothing beside the others.

    Example:
        >>> CtcDecoding().width, CtcDecoding(hotwords=("kwame",)).width
        (1, 100)
    """

    beam_width: int | None = None
    lm: str | None = None
    alpha: float | None = None
    beta: float | None = None
    unknown_word: float | None = None
    hotwords: tuple[str, ...] = ()
    hotword_weight: float | None = None

    def __post_init__(self) -> None:
        if isinstance(self.hotwords, str):
            raise ValueError(f"hotwords must be a tuple of texts, got one text; write ({self.hotwords!r},)")
        if self.beam_width is not None and self.beam_width < 1:
            raise ValueError(f"beam_width must be at least 1, got {self.beam_width}; try {WIDE}")
        if self.beam_width == 1 and self.by_words:
            raise ValueError("beam_width=1 is greedy, and hears neither lm nor hotwords; leave it out, or try 100")
        for names, there, what in (
            (_OF_LM, self.lm is not None, "lm"),
            (("hotword_weight",), self.hotwords, "hotwords"),
        ):
            for name in names:
                value = getattr(self, name)
                if value is not None and not there:
                    raise ValueError(f"{name}={value} does nothing without {what}; give {what} too, or leave it out")
                if value is not None and not math.isfinite(value):
                    raise ValueError(f"{name} must be finite, got {value}")
        if self.alpha is not None and self.alpha < 0:
            raise ValueError(f"alpha must not be negative, got {self.alpha}; try 0.5")
        if any(not word.strip() for word in self.hotwords):
            raise ValueError(f"hotwords must not be empty, got {self.hotwords!r}")

    @property
    def by_words(self) -> bool:
        """True if words count, not frames alone: the extra is needed."""
        return self.lm is not None or bool(self.hotwords)

    @property
    def width(self) -> int:
        """Prefixes kept from frame to frame."""
        return self.beam_width or (WIDE if self.by_words else 1)
