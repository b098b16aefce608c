"""What a device has to know of a Whisper besides its graphs: how audio becomes features, and tokens a text."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from audiolora.export.fields import as_list, check, is_count

CONTEXTS = ("auto", "full")

ENCODER, DECODER = "encoder", "decoder"
"""The graphs. The encoder's outputs are inputs of the decoder by the same names, beside its tokens and its states."""

FEATURES, TOKENS = "features", "tokens"

FILTERS_FILE = "mel.safetensors"
"""``filters`` (n_fft / 2 + 1, n_mels) and ``window`` (n_fft,), float32: the very ones that the model was trained on."""

VOCABULARY_FILE = "vocabulary.json"
"""A list, one string a token: its bytes as the code points 0 to 255, "" for a token that is no part of a text."""


@dataclass(frozen=True)
class WhisperSettings:
    """The features, the context and the decoding rules of a Whisper and of each of its adapters.

    Args:
        sample_rate_hz: of the audio.
        n_fft, hop: of the spectrogram, samples.
        n_mels: bands.
        max_frames: the longest context, frames of one hop.
        context: ``"auto"``, the encoder sees a clip's own length, or ``"full"``, max_frames.
        multiple_frames, floor_frames: in "auto", lengths are rounded up to a multiple, and are never shorter.
        start: the first token of the prompt.
        languages: code → token, the prompt's second; empty for an English-only model, which has none there.
        language: one of them, or None: each clip's is detected.
        after: the rest of the prompt: the task, no timestamps.
        end: the token that ends a text.
        suppressed: tokens that are never written.
        begin_suppressed: tokens that no text begins with.
        max_tokens: the longest text of all.
        tokens_per_s, tokens_at_least: the longest text of t seconds has tokens_at_least + ⌈tokens_per_s · t⌉ tokens, so
            that a model that repeats itself comes to an end.

    Raises:
        ValueError: a value out of its range; its name and the rule are told.
    """

    KIND: ClassVar[str] = "whisper"

    sample_rate_hz: int
    n_fft: int
    hop: int
    n_mels: int
    max_frames: int
    context: str
    multiple_frames: int
    floor_frames: int
    start: int
    languages: Mapping[str, int]
    language: str | None
    after: tuple[int, ...]
    end: int
    suppressed: tuple[int, ...]
    begin_suppressed: tuple[int, ...]
    max_tokens: int
    tokens_per_s: int
    tokens_at_least: int

    def __post_init__(self) -> None:
        for name in _POSITIVE:
            check(is_count(getattr(self, name)) and getattr(self, name) > 0, name, getattr(self, name), "positive")
        for name in ("start", "end"):
            check(is_count(getattr(self, name)), name, getattr(self, name), "a token")
        for name in _TOKENS:
            check(all(map(is_count, getattr(self, name))), name, getattr(self, name), "tokens")
        check(self.context in CONTEXTS, "context", self.context, f"one of {', '.join(CONTEXTS)}")
        known = isinstance(self.languages, Mapping) and all(map(is_count, self.languages.values()))
        check(known, "languages", self.languages, "tokens by code")
        self.check_language(self.language)
        check(self.n_fft % 2 == 0, "n_fft", self.n_fft, "even")
        longest = max(self.multiple_frames, self.floor_frames)
        check(longest <= self.max_frames, "multiple_frames, floor_frames", longest, f"at most {self.max_frames}")

    def check_language(self, language: str | None) -> None:
        """Nothing if this Whisper can be told so.

        Raises:
            ValueError: it knows no such language.
        """
        known = ", ".join(self.languages) or "English alone, and is told none: give language=None"
        check(language is None or language in self.languages, "language", language, f"one it knows: {known}")

    def n_frames(self, n_samples: int) -> int:
        """The context of a clip, frames: `speech.context.ContextPolicy.n_frames` in whole numbers.

        Raises:
            ValueError: longer than max_frames.
        """
        frames = -(-n_samples // self.hop)
        limit_s = self.max_frames * self.hop / self.sample_rate_hz
        if frames > self.max_frames:
            raise ValueError(
                f"{n_samples / self.sample_rate_hz:.2f} s, and this model hears at most {limit_s:g} s at once"
            )
        if self.context == "full":
            return self.max_frames
        rounded = -(-max(frames, self.floor_frames) // self.multiple_frames) * self.multiple_frames
        return min(rounded, self.max_frames)

    def most_tokens(self, n_samples: int) -> int:
        """The longest text of a clip, tokens."""
        by_length = self.tokens_at_least + math.ceil(self.tokens_per_s * (n_samples / self.sample_rate_hz))
        return min(self.max_tokens, by_length)


_POSITIVE = (
    "sample_rate_hz n_fft hop n_mels max_frames multiple_frames floor_frames max_tokens tokens_per_s tokens_at_least"
).split()
_TOKENS = ("after", "suppressed", "begin_suppressed")
_OF_ADAPTER = ("context", "language", "after")


def whisper_settings(says: Mapping[str, Any]) -> WhisperSettings:
    """From a manifest's JSON.

    Raises:
        ValueError: a setting out of its range.
        TypeError: one is missing or unknown.
    """
    lists = {name: tuple(as_list(says[name])) for name in _TOKENS if name in says}
    return WhisperSettings(**{**says, **lists})


def check_same_model(base: WhisperSettings, adapter: WhisperSettings) -> None:
    """Nothing if an adapter's settings are of this base: context, language and task may be its own.

    Raises:
        ValueError: what else differs.
    """
    names = [field.name for field in fields(base) if field.name not in _OF_ADAPTER]
    other = [name for name in names if getattr(base, name) != getattr(adapter, name)]
    check(not other, "an adapter's settings", ", ".join(other), "the base's, but for context, language and task")
