"""From audio to text with a CTC model: log-probabilities of each frame, and the greedy path through them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import nn

from audiolora.speech.ctc.collate import ctc_features
from audiolora.speech.ctc.decoding import CtcDecoding
from audiolora.speech.ctc.frames import FrameCount, ctc_network, hears_padding
from audiolora.speech.data.audio import SAMPLE_RATE_HZ
from audiolora.speech.texts.transcribing import Advance, evaluating, progress_bar

Decoder = Callable[[np.ndarray], str]
"""From log-probabilities (frames, vocabulary) float32 of one clip to its text."""


def transcribe_ctc(
    model: nn.Module,
    processor: Any,
    audios: Sequence[np.ndarray],
    *,
    decoder: Decoder | CtcDecoding | None = None,
    batch_size: int = 8,
    progress: bool | Advance = True,
    names: Sequence[str] | None = None,
) -> list[str]:
    """Transcribe clips with a CTC model.

    A clip's text does not depend on which others stand beside it: see `ctc_log_probs`.

    Args:
        model: a CTC model, bare or wrapped; its train/eval modes are left as they were.
        processor: its feature extractor and tokenizer.
        audios: clips (L,), 16 kHz, mono, float.
        decoder: from a clip's log-probabilities to its text, such as a beam search, or how to decode; None: greedily.
        batch_size: clips a batch.
        progress: show a progress bar on stderr; or what to call instead with each number of clips that are done.
        names: what error messages call the clips, for example their files.

    Returns:
        The texts in the order of `audios`.

    Raises:
        ValueError: a clip that is empty, not finite, or too short for one frame; a batch size below 1.

    Example:
        >>> transcribe_ctc(ctc.model, ctc.processor, [samples])  # doctest: +SKIP
        ['seven']
    """
    if isinstance(decoder, CtcDecoding):
        from audiolora.speech.ctc.beam import ctc_decoder

        decoder = ctc_decoder(decoder, processor.tokenizer)
    decode = decoder or GreedyDecoder(processor.tokenizer)
    texts = [""] * len(audios)
    for index, log_probs in ctc_log_probs(
        model, processor, audios, batch_size=batch_size, progress=progress, names=names
    ):
        texts[index] = decode(log_probs)
    return texts


class GreedyDecoder:
    """The best token of each frame, repetitions joined and blanks taken out (Graves et al., ICML 2006, section 3.2).

    Special tokens are left out of the text, and part repetitions as the blank does.

    Args:
        tokenizer: of the model.

    Example:
        >>> GreedyDecoder(processor.tokenizer)(log_probs)  # doctest: +SKIP
        'seven'
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer, self.blank = tokenizer, int(tokenizer.pad_token_id)
        delimiter = getattr(tokenizer, "_word_delimiter_token", None)
        special = zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True)
        self._special = np.array([i for i, token in special if token != delimiter], np.int64)

    def __call__(self, log_probs: np.ndarray) -> str:
        """The text of a clip.

        Args:
            log_probs: (frames, vocabulary).
        """
        path = log_probs.argmax(axis=1)
        # The tokenizer would leave special tokens out, the blank among them, before it joins repetitions.
        path = np.where(np.isin(path, self._special), self.blank, path)
        return str(self.tokenizer.decode(path.tolist())).strip()


def ctc_log_probs(
    model: nn.Module,
    processor: Any,
    audios: Sequence[np.ndarray],
    *,
    batch_size: int = 8,
    progress: bool | Advance = True,
    names: Sequence[str] | None = None,
) -> Iterator[tuple[int, np.ndarray]]:
    """Log-probabilities of each clip, (frames, vocabulary) float32, with its index; the longest clips first.

    Clips share a batch where the model does not hear the padding, else only where they are of one length.

    Args, Raises: as of `transcribe_ctc`.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    network, extractor = ctc_network(model), processor.feature_extractor
    frames = FrameCount.of(model, extractor)
    clips = _checked(audios, names, frames)
    device = next(network.parameters()).device
    batches = _batches([len(clip) for clip in clips], batch_size, alone=hears_padding(model, extractor))
    # no_grad and not inference_mode: a tensor that an adapter layer caches here may be met by a later backward
    bar = progress_bar(len(clips), progress) if isinstance(progress, bool) else nullcontext(progress)
    with evaluating(model), bar as advance:
        for batch in batches:
            features = ctc_features(processor, [clips[index] for index in batch])
            with torch.no_grad():
                logits = network(**{name: tensor.to(device) for name, tensor in features.items()}).logits
                log_probs = torch.log_softmax(logits.float(), dim=-1).cpu().numpy()
            for row, index in enumerate(batch):
                yield index, log_probs[row, : frames(len(clips[index]))]
            advance(len(batch))


def _checked(audios: Sequence[np.ndarray], names: Sequence[str] | None, frames: FrameCount) -> list[np.ndarray]:
    if names is not None and len(names) != len(audios):
        raise ValueError(f"names must have one entry a clip: {len(names)} names, {len(audios)} clips")
    clips = []
    for index, audio in enumerate(audios):
        name = f"clip {index}" if names is None else f"clip {index} ({names[index]})"
        samples = np.asarray(audio, dtype=np.float32)
        if samples.ndim != 1 or samples.size == 0:
            raise ValueError(f"{name} must be mono with at least one sample, shape (L,); got shape {samples.shape}")
        if not np.isfinite(samples).all():
            raise ValueError(f"{name} holds NaN or infinite samples; repair or drop the clip")
        if frames(len(samples)) < 1:
            raise ValueError(
                f"{name} lasts {len(samples) / SAMPLE_RATE_HZ:.3f} s, shorter than what the model makes one frame of; "
                "drop the clip"
            )
        clips.append(samples)
    return clips


def _batches(lengths: Sequence[int], batch_size: int, *, alone: bool) -> Iterator[list[int]]:
    """Indices of clips, longest first: what does not fit in memory fails at once."""
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    groups: dict[int, list[int]] = {}
    for index in order:
        groups.setdefault(lengths[index] if alone else 0, []).append(index)
    for indices in groups.values():
        for start in range(0, len(indices), batch_size):
            yield indices[start : start + batch_size]
