"""Audio to text on the device: features, the encoder once, the decoder with its cache token by token, greedily.

What `audiolora.speech.whisper.decode.transcribe` does with torch: clips of one context are batched together, the most
likely token is taken at each step, some tokens never are, and a text ends at the end token or at its length's limit.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from audiolora.edge.audio import checked_clips
from audiolora.edge.mel import log_mel
from audiolora.export.errors import BundleError
from audiolora.export.tensors import read_tensors
from audiolora.export.whisper_settings import DECODER, ENCODER, FILTERS_FILE, TOKENS, VOCABULARY_FILE, WhisperSettings

# A timestamp, among the bytes of others: dropped last, as transformers does, for it keeps apart what it stands between.
_TIMESTAMP = re.compile(r"<\|\d+\.\d+\|>")

Arrays = Mapping[str, np.ndarray]

Encode = Callable[[np.ndarray], Arrays]
"""Features (N, n_mels, frames) → what the decoder takes of them, by name."""

Step = Callable[[np.ndarray, Arrays, Arrays | None], tuple[np.ndarray, Arrays]]
"""Tokens (N, steps) int64, the encoder's part, the cache (None: empty) → logits (N, steps, vocabulary), the cache."""


@dataclass(frozen=True)
class Assets:
    """What the base's files hold besides graphs.

    Args:
        filters, window: as in `mel.log_mel`.
        vocabulary: each token's bytes; none for a token that is no part of a text.
    """

    filters: np.ndarray
    window: np.ndarray
    vocabulary: Sequence[bytes]

    @classmethod
    def read(cls, files: Mapping[str, bytes], settings: WhisperSettings) -> Assets:
        """From the base's files, by name.

        Raises:
            BundleError: a file is missing, or is not what the settings say.
        """
        for name in (FILTERS_FILE, VOCABULARY_FILE):
            if name not in files:
                raise BundleError(f"base/{name}: missing, and this is a bundle of a Whisper; export it again")
        stored = read_tensors(files[FILTERS_FILE], f"base/{FILTERS_FILE}")
        shapes = {"filters": (settings.n_fft // 2 + 1, settings.n_mels), "window": (settings.n_fft,)}
        found = {name: tensor.shape for name, tensor in stored.items()}
        if found != shapes:
            raise BundleError(f"base/{FILTERS_FILE}: it holds {found}, and {shapes} are needed; export it again")
        return cls(stored["filters"], stored["window"], _vocabulary(files[VOCABULARY_FILE]))

    def text(self, tokens: Sequence[int]) -> str:
        """The text of tokens, without blanks at its ends."""
        known = len(self.vocabulary)
        written = b"".join(self.vocabulary[token] for token in tokens if token < known).decode("utf-8", "replace")
        return _TIMESTAMP.sub("", written).strip()


def transcribe_whisper(
    network: Any,
    settings: WhisperSettings,
    assets: Assets,
    audio: np.ndarray | Sequence[np.ndarray],
    sample_rate_hz: int,
    *,
    batch_size: int = 8,
) -> str | list[str]:
    """The text of a clip, or of each of several; see `Session.transcribe`.

    Args:
        network: the graphs, an `edge.network.Network`.
        settings, assets, sample_rate_hz, batch_size: as in `transcribe_with`.
        audio: a clip (L,), or several.
    """
    names = [output.name for output in network.manifest.graphs[ENCODER].outputs]

    def encode(features: np.ndarray) -> Arrays:
        return dict(zip(names, network.run(features, ENCODER), strict=True))

    def step(tokens: np.ndarray, heard: Arrays, cache: Arrays | None) -> tuple[np.ndarray, Arrays]:
        found: tuple[np.ndarray, Arrays] = network.step({TOKENS: tokens, **heard}, cache, DECODER)
        return found

    clips = [audio] if isinstance(audio, np.ndarray) else audio
    texts = transcribe_with(settings, assets, clips, sample_rate_hz, encode, step, batch_size=batch_size)
    return texts[0] if isinstance(audio, np.ndarray) else texts


def transcribe_with(
    settings: WhisperSettings,
    assets: Assets,
    audios: Sequence[np.ndarray],
    sample_rate_hz: int,
    encode: Encode,
    step: Step,
    *,
    batch_size: int = 8,
) -> list[str]:
    """The texts of clips; see `Session.transcribe`.

    Args:
        settings: of the adapter, or of the base.
        assets: of the base.
        audios: as there.
        sample_rate_hz: as there.
        encode, step: the two graphs.
        batch_size: clips that run together.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    clips = _checked(settings, audios, sample_rate_hz)
    texts = [""] * len(clips)
    for n_frames, batch in _batches(settings, clips, batch_size):
        how: dict[str, Any] = {"filters": assets.filters, "window": assets.window}
        how |= {"hop": settings.hop, "max_frames": settings.max_frames}
        heard = encode(np.stack([log_mel(clips[i], n_frames, **how) for i in batch]))
        limits = [settings.most_tokens(len(clips[i])) for i in batch]
        written = greedy(settings, limits, partial(_heard_step, step, heard))
        for i, tokens in zip(batch, written, strict=True):
            texts[i] = assets.text(tokens)
    return texts


def _heard_step(step: Step, heard: Arrays, tokens: np.ndarray, cache: Arrays | None) -> tuple[np.ndarray, Arrays]:
    return step(tokens, heard, cache)


def greedy(
    settings: WhisperSettings,
    limits: Sequence[int],
    step: Callable[[np.ndarray, Arrays | None], tuple[np.ndarray, Arrays]],
) -> list[list[int]]:
    """The most likely token again and again, for each row until it ends.

    Args:
        settings: the prompt, what is suppressed, the end.
        limits: the longest text of each row, tokens.
        step: the decoder, as in `Step`, its encoder's part given.

    Returns:
        Each row's tokens, prompt and end left out.
    """
    prompt = np.array([_prompt(settings, language) for language in _languages(settings, len(limits), step)], np.int64)
    logits, cache = step(prompt, None)
    scores = logits[:, -1]
    _suppress(scores, settings.begin_suppressed)
    rows: list[list[int]] = [[] for _ in limits]
    running = list(range(len(limits)))
    while True:
        _suppress(scores, settings.suppressed)
        chosen = scores.argmax(axis=1)
        for row in running:
            if chosen[row] != settings.end:
                rows[row].append(int(chosen[row]))
        running = [row for row in running if chosen[row] != settings.end and len(rows[row]) < limits[row]]
        if not running:
            return rows
        logits, cache = step(chosen[:, None].astype(np.int64), cache)
        scores = logits[:, -1]


def _prompt(settings: WhisperSettings, language: int | None) -> list[int]:
    return [settings.start, *([] if language is None else [language]), *settings.after]


def _languages(
    settings: WhisperSettings, n: int, step: Callable[[np.ndarray, Arrays | None], tuple[np.ndarray, Arrays]]
) -> list[int] | list[None]:
    """Each row's language token: the one that is set, or the likeliest of all, or none for an English-only model."""
    if not settings.languages:
        return [None] * n
    if settings.language is not None:
        return [settings.languages[settings.language]] * n
    tokens = np.array(sorted(settings.languages.values()))
    logits, _ = step(np.full((n, 1), settings.start, np.int64), None)
    return [int(token) for token in tokens[logits[:, -1, tokens].argmax(axis=1)]]


def _suppress(scores: np.ndarray, tokens: Sequence[int]) -> None:
    scores[:, list(tokens)] = -np.inf


def _batches(settings: WhisperSettings, clips: Sequence[np.ndarray], size: int) -> Iterator[tuple[int, list[int]]]:
    """(context in frames, indices of clips), the longest first: what does not fit in memory fails at once."""
    by_context: dict[int, list[int]] = {}
    for i in sorted(range(len(clips)), key=lambda i: -len(clips[i])):
        by_context.setdefault(settings.n_frames(len(clips[i])), []).append(i)
    for n_frames, indices in by_context.items():
        for begin in range(0, len(indices), size):
            yield n_frames, indices[begin : begin + size]


def _checked(settings: WhisperSettings, audios: Sequence[np.ndarray], sample_rate_hz: int) -> list[np.ndarray]:
    clips = checked_clips(audios, sample_rate_hz, settings.sample_rate_hz)
    for i, clip in enumerate(clips):
        try:
            settings.n_frames(len(clip))
        except ValueError as error:
            raise ValueError(f"clip {i} lasts {error}: cut it into shorter clips") from None
    return clips


def _vocabulary(data: bytes) -> list[bytes]:
    where = f"base/{VOCABULARY_FILE}"
    try:
        listed = json.loads(data.decode("utf-8"))
        if not isinstance(listed, list) or not all(isinstance(token, str) for token in listed):
            raise ValueError("it is no list of strings")
        return [token.encode("latin-1") for token in listed]
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{where}: {error}; export it again") from None
