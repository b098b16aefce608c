"""What a model, or an alphabet alone, takes: how long a clip may be, which texts it can write."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from audiolora.speech.data.audio import MAX_DURATION_S, SAMPLE_RATE_HZ


@dataclass(frozen=True)
class ModelLimits:
    """What a model takes.

    Args:
        called: what it is called.
        max_duration_s: the longest clip; None for any.
        encode: text -> token ids; it raises ValueError for a text that the model cannot write. None takes any text.
        max_tokens: the most ids of a text.
        normalize: text -> what error rates compare.
        misfit: see `Rules`.
        outside: text -> the letters in it that the model cannot write, as often as they stand there.
    """

    called: str = "any model that hears 30 s"
    max_duration_s: float | None = MAX_DURATION_S
    encode: Callable[[str], Sequence[int]] | None = None
    max_tokens: int | None = None
    normalize: Callable[[str], str] | None = None
    misfit: Callable[[str, float], str | None] | None = None
    outside: Callable[[str], Iterable[str]] | None = None

    def letters_outside(self, texts: Iterable[str]) -> list[tuple[str, int]]:
        """(letter, how often) of the texts, the most frequent first."""
        counts: Counter[str] = Counter()
        for text in texts if self.outside is not None else ():
            counts.update(self.outside(text))  # type: ignore[misc]
        return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def limits_of_model(name: str, *, language: str | None = None, log: Callable[[str], object] = print) -> ModelLimits:
    """The limits of a Whisper or a CTC model.

    Args:
        name: a local directory, an OpenAI .pt file, or a hub name; one with "whisper" in it is taken for a Whisper.
        language: Whisper's code of the language spoken, for the normalisation of texts.
        log: called with a sentence for each thing worth knowing.

    Raises:
        ValueError: no such model.

    >>> limits_of_model("openai/whisper-tiny.en").max_duration_s  # doctest: +SKIP
    30.0
    """
    if _is_whisper(name):
        from audiolora.speech.checks.checking import SPECIAL_TOKENS
        from audiolora.speech.whisper.language import text_normalizer
        from audiolora.speech.whisper.weights import load_whisper

        whisper = load_whisper(name, log=log)
        return ModelLimits(
            name,
            encode=lambda text: whisper.processor.tokenizer(text, add_special_tokens=False).input_ids,
            max_tokens=whisper.model.config.max_target_positions - SPECIAL_TOKENS,
            normalize=text_normalizer(whisper.processor, language or "any"),
        )
    from audiolora.speech.ctc.frames import FrameCount
    from audiolora.speech.ctc.models import load_ctc
    from audiolora.speech.ctc.targets import target_encoder, target_fault

    loaded = load_ctc(name, log=log)
    frames = FrameCount.of(loaded.model, loaded.processor.feature_extractor)
    encode = target_encoder(loaded.processor, language)
    return replace(
        _of_letters(name, loaded.processor, language),
        encode=encode,
        misfit=lambda text, duration_s: target_fault(frames, encode, text, round(duration_s * SAMPLE_RATE_HZ)),
    )


def limits_of_vocabulary(vocabulary: str) -> ModelLimits:
    """The limits of an alphabet.

    Args:
        vocabulary: a `vocab.json` as CTC tokenizers have it, another file with a letter a line, or the letters
            themselves: ``"abcdefghijklmnopqrstuvwxyz'"``. The space between words is always part of it.

    Raises:
        ValueError: a file that is no alphabet, or letters that make none.

    >>> limits_of_vocabulary("abc").letters_outside(["cab", "dad"])
    [('d', 2)]
    """
    from audiolora.speech.ctc.vocabulary import Vocabulary, make_tokenizer

    path = Path(os.path.expanduser(vocabulary))
    is_path = os.path.isfile(path) or (os.sep in vocabulary and os.path.isdir(path))
    letters = _letters_of_file(path) if is_path or path.suffix in (".json", ".txt") else list(vocabulary)
    unique = tuple(dict.fromkeys(letter for letter in letters if len(letter) == 1 and letter not in " |"))
    processor = SimpleNamespace(tokenizer=make_tokenizer(Vocabulary(unique)))
    return _of_letters(f"the {len(unique)} letters of {vocabulary}", processor, None)


def _of_letters(called: str, processor: Any, language: str | None) -> ModelLimits:
    from audiolora.speech.ctc.vocabulary import encoder, spelling

    spell, tokenizer = spelling(processor, language=language), processor.tokenizer

    @cache
    def unknown(letter: str) -> bool:
        ids = tokenizer(letter, add_special_tokens=False).input_ids
        return tokenizer.unk_token_id in ids or None in ids

    return ModelLimits(
        called,
        encode=encoder(processor, language=language),
        outside=lambda text: [letter for letter in spell(text) if not letter.isspace() and unknown(letter)],
    )


def _letters_of_file(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8-sig")
        found = json.loads(text) if path.suffix == ".json" else text.split("\n")
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read as an alphabet ({error})") from error
    if not isinstance(found, (dict, list)) or not all(isinstance(letter, str) for letter in found):
        raise ValueError(f"{path}: not an alphabet; it must be an object of letters and numbers, or a list of letters")
    return list(found)


def _is_whisper(name: str) -> bool:
    path = Path(name).expanduser()
    config = path / "config.json"
    if config.is_file():
        return json.loads(config.read_text(encoding="utf-8")).get("model_type") == "whisper"
    return path.suffix == ".pt" or "whisper" in name.lower()
