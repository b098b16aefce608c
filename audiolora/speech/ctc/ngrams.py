"""An n-gram model of words from texts, as the ARPA file that beam search takes: what a few thousand transcripts need.

Interpolated Witten-Bell smoothing (Witten and Bell, 1991; Chen and Goodman, 1999, section 2.6): with c(h) the count of
a history h and T(h) the number of different words that follow it,

    P(w | h) = (c(h w) + T(h) · P(w | h without its first word)) / (c(h) + T(h)),

down to 1 / V over the words, ``</s>`` and ``<unk>``. It has no discounts to estimate, so that it holds for small texts.
For millions of words KenLM's ``lmplz`` (modified Kneser-Ney, on disk) makes a better and smaller file.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

from audiolora.files import write_text

START, END, UNKNOWN = "<s>", "</s>", "<unk>"
_NEVER = -99.0  # what ARPA files write for log10 0

NGram = tuple[str, ...]


def write_arpa(texts: Iterable[str], path: str | Path, *, order: int = 3) -> None:
    """Count the words of texts and leave an ARPA file, whole or not at all.

    Args:
        texts: a sentence each, in the spelling and case that the CTC model writes; words are split at white space.
        path: ends in ``.arpa``.
        order: the longest n-gram, 1 or more.

    Raises:
        ValueError: no words, a word that is one of ARPA's own marks, another file name, or an order below 1.

    Example:
        >>> write_arpa(["press one", "press two"], "words.arpa", order=2)  # doctest: +SKIP
    """
    path = Path(path)
    if path.suffix != ".arpa":
        raise ValueError(f"{path}: name it with .arpa at the end, by which it is known")
    if order < 1:
        raise ValueError(f"order must be at least 1, got {order}; try 3")
    found = _probabilities(_counted(texts, order))
    # KenLM takes no model of single words alone: an empty list of pairs is one, and changes no probability.
    write_text(path, "\n".join(_lines(found if order > 1 else [*found, {}])) + "\n")


def _counted(texts: Iterable[str], order: int) -> list[Counter[NGram]]:
    """Of each order the n-grams that predict a word: ``<s>`` is never predicted."""
    counts: list[Counter[NGram]] = [Counter() for _ in range(order)]
    for text in texts:
        words = text.split()
        marks = {START, END, UNKNOWN} & set(words)
        if marks:
            raise ValueError(f"text {text!r} has the mark {min(marks)}, which an ARPA file has for itself; take it out")
        if not words:
            continue
        sentence = (START, *words, END)
        for end in range(2, len(sentence) + 1):
            for n in range(1, min(order, end) + 1):
                counts[n - 1][sentence[end - n : end]] += 1
    if not counts[0]:
        raise ValueError("no words in the texts; give transcripts")
    return counts


def _probabilities(counts: list[Counter[NGram]]) -> list[dict[NGram, tuple[float, float | None]]]:
    """Of each order: n-gram → (probability, back-off weight where something follows it)."""
    total, kinds = defaultdict[NGram, int](int), defaultdict[NGram, int](int)
    for of_order in counts:
        for ngram, count in of_order.items():
            total[ngram[:-1]] += count
            kinds[ngram[:-1]] += 1

    def back_off(history: NGram) -> float | None:
        return kinds[history] / (total[history] + kinds[history]) if history in kinds else None

    n_words = len(counts[0]) + 1
    found: list[dict[NGram, tuple[float, float | None]]] = []
    for n, of_order in enumerate(counts):
        own: dict[NGram, tuple[float, float | None]] = {}
        for ngram, count in of_order.items():
            history = ngram[:-1]
            lower = found[n - 1][ngram[1:]][0] if n else 1 / n_words
            weight = total[history] + kinds[history]
            own[ngram] = (count + kinds[history] * lower) / weight, back_off(ngram)
        if not n:
            own[(UNKNOWN,)] = kinds[()] / n_words / (total[()] + kinds[()]), None
            own[(START,)] = 0.0, back_off((START,))
        found.append(own)
    return found


def _lines(orders: list[dict[NGram, tuple[float, float | None]]]) -> Iterable[str]:
    yield "\\data\\"
    for n, ngrams in enumerate(orders, start=1):
        yield f"ngram {n}={len(ngrams)}"
    for n, ngrams in enumerate(orders, start=1):
        yield f"\n\\{n}-grams:"
        for ngram, (probability, back_off) in sorted(ngrams.items()):
            line = f"{math.log10(probability) if probability else _NEVER:.7f}\t{' '.join(ngram)}"
            yield line if back_off is None or n == len(orders) else f"{line}\t{math.log10(back_off):.7f}"
    yield "\n\\end\\"
