"""From log-probabilities of frames to text: greedy, prefix beam search, and with a language model of words.

Without words to weigh, the search is `edge.ctc_search`'s, the one that devices run. With a language model or hotwords
it is the library ctc-beam-decoder: pyctcdecode's search in C++ with KenLM inside. pyctcdecode itself asks for numpy
below 2 and KenLM for a compiler, so neither can be an extra of ours; flashlight-text has no hotwords and hears a
language model of words through a closed lexicon only.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from audiolora.edge.ctc_search import beam_search, best_path
from audiolora.speech.ctc.alphabet import PIECE, Alphabet, DecodedWord, alphabet_of, words_of_path
from audiolora.speech.ctc.decode import Decoder, GreedyDecoder
from audiolora.speech.ctc.decoding import CtcDecoding

_END = "</s>"
# The library's own: tokens below this and prefixes so far below the best are not followed (nats), and what differs only
# before the language model's memory is one.
_PRUNED: dict[str, Any] = {"token_min_logp": -5.0, "beam_prune_logp": -10.0, "prune_history": True}
_NEVER = -1e4
# The library lifts a probability to 1e-15, e^-34.5, if it is less; such a token is not followed.
_UNPRUNED: dict[str, Any] = {"token_min_logp": -33.0, "beam_prune_logp": -1e30, "prune_history": False}


@dataclass(frozen=True)
class Decoded:
    """What a clip was decoded to.

    Args:
        text: the words.
        score: in nats: log-probability of the frames, and with a language model and hotwords what these add.
        words: where each word is, on the best path of the text. With word pieces and a language model or hotwords it is
            what the library says, where -1 stands for a frame it has lost.
    """

    text: str
    score: float
    words: tuple[DecodedWord, ...]


def ctc_decoder(decoding: CtcDecoding, tokenizer: Any) -> Decoder:
    """From log-probabilities (frames, vocabulary) of one clip to its text; for `decode.transcribe_ctc`.

    Args:
        decoding: how.
        tokenizer: of the model.

    Raises:
        ValueError: a language model or a hotword that the model cannot write, or a file that is none.
        ImportError: the extra is not installed.

    Example:
        >>> ctc_decoder(CtcDecoding(lm="words.arpa"), processor.tokenizer)(log_probs)  # doctest: +SKIP
        'press one'
    """
    return GreedyDecoder(tokenizer) if decoding.width == 1 else BeamDecoder(decoding, tokenizer)


class BeamDecoder:
    """Beam search over one clip's log-probabilities.

    Args:
        decoding: how; see `CtcDecoding`.
        tokenizer: of the model.
        prune: with words to weigh, leave out tokens and prefixes that are far below the best, as the library does by
            itself; False follows as many as the beam is wide.

    Raises:
        ValueError, ImportError: as of `ctc_decoder`.
    """

    def __init__(self, decoding: CtcDecoding, tokenizer: Any, *, prune: bool = True) -> None:
        self.decoding, self.alphabet = decoding, alphabet_of(tokenizer)
        self._limits = _PRUNED if prune else _UNPRUNED
        self._hotwords = [_spelled(word, self.alphabet) for phrase in decoding.hotwords for word in phrase.split()]
        self._library: Any = _library(decoding, self.alphabet) if decoding.by_words else None
        self._end_weight = self._weight_of_end()

    def __call__(self, log_probs: np.ndarray) -> str:
        """The text of a clip.

        Args:
            log_probs: (frames, vocabulary).
        """
        return self.decode(log_probs).text

    def decode(self, log_probs: np.ndarray) -> Decoded:
        """The text of a clip, its score and its words.

        Args:
            log_probs: (frames, vocabulary), finite.

        Raises:
            ValueError: another shape, or what is not finite.
        """
        if log_probs.ndim != 2 or log_probs.shape[1] <= max(self.alphabet.columns):
            raise ValueError(
                f"log_probs must be (frames, vocabulary) with {max(self.alphabet.columns) + 1} outputs or more, got "
                f"shape {log_probs.shape}"
            )
        kept = log_probs[:, self.alphabet.columns]
        if not np.isfinite(kept).all():
            raise ValueError("log_probs hold NaN or infinite values; take the log-softmax of finite logits")
        if not len(kept):
            return Decoded("", 0.0, ())
        found = self._by_frames(kept) if self._library is None else self._by_words(kept)
        if not self.alphabet.lower:
            return found
        words = tuple(DecodedWord(word.text.lower(), word.start, word.end) for word in found.words)
        return Decoded(found.text.lower(), found.score, words)

    def _by_frames(self, log_probs: np.ndarray) -> Decoded:
        labelling, score = beam_search(log_probs, self.decoding.width, self.alphabet.blank)
        words = words_of_path(best_path(log_probs, labelling, self.alphabet.blank), self.alphabet)
        return Decoded(" ".join(word.text for word in words), score, words)

    def _by_words(self, log_probs: np.ndarray) -> Decoded:
        # The library takes the log-softmax again, over the outputs that are left: each frame by a constant, which is
        # given back to the score.
        gone = float(np.logaddexp.reduce(log_probs.astype(np.float64), axis=1).sum())
        found = self._search(np.ascontiguousarray(self._ended(log_probs), np.float32), self.decoding.width)
        if found is None:
            return Decoded("", gone, ())
        text, _, words, _, score = found
        if self.decoding.lm is not None:
            text, words = " ".join(text.split()[:-1]), words[:-1]
        return Decoded(text, score + gone - self._end_weight, self._located(text, words, log_probs))

    def _located(self, text: str, words: Any, log_probs: np.ndarray) -> tuple[DecodedWord, ...]:
        labels = self.alphabet.labels
        if any(len(label) > 1 for label in labels):  # which pieces a word was made of the library does not tell
            return tuple(DecodedWord(word, *frames) for word, frames in words)
        path = best_path(log_probs, [labels.index(letter) for letter in text], self.alphabet.blank)
        return words_of_path(path, self.alphabet)

    def _search(self, log_probs: np.ndarray, width: int) -> Any:
        weight = self.decoding.hotword_weight
        beams = self._library.decode_beams(
            log_probs,
            beam_width=width,
            hotwords=self._hotwords or None,
            **({} if weight is None else {"hotword_weight": weight}),
            **self._limits,
        )
        return beams[0] if beams else None

    def _ended(self, log_probs: np.ndarray) -> np.ndarray:
        """With a language model: a space and the sentence's end after the last frame, as a word that is certain.

        Of a text that ends in a space pyctcdecode's search, which the library keeps to, takes the end for one more
        word, an unknown one, and of the same text without the space not: a penalty of ten nats or so that depends on
        the order of the beam. A word of its own at the end, and every text is asked for its end alike.
        """
        if self.decoding.lm is None:
            return log_probs
        ends = ([] if self.alphabet.pieces else [self.alphabet.labels.index(" ")]) + [len(self.alphabet.labels)]
        wider = np.full((len(log_probs) + len(ends), log_probs.shape[1] + 1), _NEVER)
        wider[: len(log_probs), :-1] = log_probs
        wider[np.arange(len(log_probs), len(wider)), ends] = 0
        return wider

    def _weight_of_end(self) -> float:
        """What the library adds after the end of a sentence: nats, the same for every text."""
        if self.decoding.lm is None:
            return 0.0
        ends = self._ended(np.zeros((0, len(self.alphabet.labels))))
        once, twice = (self._search(np.concatenate([ends] * n).astype(np.float32), 1)[4] for n in (1, 2))
        return float(twice - once)


def arpa_words(path: Path) -> list[str]:
    """The words of an ARPA file, plain or gzipped, without sentence marks and the unknown word.

    Raises:
        ValueError: it has none: not an ARPA file.
    """
    words, inside = [], False
    opened: Any = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rt", encoding="utf-8") as lines:
            for line in lines:
                if line.startswith("\\"):
                    if inside:
                        break
                    inside = line.strip() == "\\1-grams:"
                elif inside and line.strip():
                    # Tab or space between probability, word and, if an n-gram goes on from it, back-off weight.
                    words.append(line.split()[1])
    except (UnicodeDecodeError, EOFError, IndexError, zlib.error) as error:  # another encoding, or cut off
        raise ValueError(f"{path}: not an ARPA file in UTF-8 ({error}); make it anew") from error
    marks = {"<s>", "</s>", "<unk>", "<UNK>"}
    if not set(words) - marks:
        raise ValueError(f"{path}: no words in it (\\1-grams:); is it an ARPA file?")
    return [word for word in words if word not in marks]


def _spelled(word: str, alphabet: Alphabet) -> str:
    found = alphabet.spelled(word)
    if found is None:
        strange = sorted(set(word) - set("".join(alphabet.labels)))
        raise ValueError(f"hotword {word!r} has letters that the model does not write: {' '.join(strange)}")
    return found


def _library(decoding: CtcDecoding, alphabet: Alphabet) -> Any:
    """The library's decoder."""
    try:
        from ctc_beam_decoder import build_ctcdecoder
    except ImportError as error:
        raise ImportError(
            "a language model and hotwords need the extra audiolora[lm]: pip install 'audiolora[lm]' "
            f"({error}); beam_width alone works without"
        ) from None
    if decoding.lm is None:
        return build_ctcdecoder(list(alphabet.labels))
    path = Path(decoding.lm).expanduser()
    words = _words_of_model(path)
    _check_spelling(path, words, alphabet)
    labels = [*alphabet.labels, PIECE + _END if alphabet.pieces else _END]
    names = {"alpha": decoding.alpha, "beta": decoding.beta, "unk_score_offset": decoding.unknown_word}
    weights = {name: float(value) for name, value in names.items() if value is not None}
    try:
        return build_ctcdecoder(labels, kenlm_model_path=str(path), unigrams=[*words, _END], **weights)
    except ValueError as error:  # KenLM's own
        raise ValueError(f"lm {path}: cannot be read; make it anew with write_arpa or lmplz ({error})") from error


def _words_of_model(path: Path) -> list[str]:
    """The words that a model knows. Without them the library takes the beginning of every word for unknown."""
    if not path.is_file():
        raise ValueError(f"lm {path}: no such file; give an ARPA file or KenLM's binary")
    if path.name.endswith((".arpa", ".arpa.gz")):
        return arpa_words(path)
    listed = path.with_name("unigrams.txt")
    if not listed.is_file():
        raise ValueError(
            f"lm {path}: a binary model does not tell its words; put them beside it in {listed.name}, one a line, or "
            "give the ARPA file it was made of (its name must end in .arpa or .arpa.gz)"
        )
    return listed.read_text(encoding="utf-8").split()


def _check_spelling(path: Path, words: Iterable[str], alphabet: Alphabet) -> None:
    letters = set("".join(alphabet.labels)) - {" ", PIECE}
    words = list(words)
    written = sum(set(word) <= letters for word in words)
    if 2 * written < len(words):
        example = next(word for word in words if not set(word) <= letters)
        hint = "; it differs by case alone: make the model from text in the tokenizer's case" * bool(
            {example.upper(), example.lower()} & {alphabet.spelled(example)}
        )
        raise ValueError(
            f"lm {path}: {len(words) - written} of its {len(words)} words cannot be written with the model's letters, "
            f"such as {example!r}{hint}"
        )
