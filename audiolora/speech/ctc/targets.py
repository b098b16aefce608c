"""What a CTC model is trained to write of a clip, and which targets it cannot: told by name, before training.

CTC (Graves et al., ICML 2006, section 3.1) lets each frame write one token or a blank and then joins repetitions. So a
target takes a frame a token, and one more for each pair of equal neighbours, which need a blank between them. Where the
clip has fewer frames the loss is infinite; `ctc_zero_infinity` would only hide that the clip teaches nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any

from torch import nn

from audiolora.speech.ctc.frames import FrameCount
from audiolora.speech.ctc.vocabulary import encoder
from audiolora.speech.data.audio import SAMPLE_RATE_HZ
from audiolora.speech.data.manifests import DataError, Utterance
from audiolora.speech.training.clips import Clips

Encode = Callable[[str], list[int]]

LISTED = 20
"""Faults that an error spells out before it counts the rest."""


def frames_needed(ids: Sequence[int]) -> int:
    """The fewest frames that can write a target: one a token, and a blank between equal neighbours.

    Example:
        >>> frames_needed([8, 5, 12, 12, 15])  # hello
        6
    """
    return len(ids) + sum(one == following for one, following in pairwise(ids))


def target_encoder(processor: Any, language: str | None = None) -> Encode:
    """`vocabulary.encoder`, and the targets that CTC cannot have are errors: an empty one, one that holds the blank.

    Args:
        processor: of the model.
        language: code of the texts' language, as there.

    Example:
        >>> target_encoder(processor)("Press one!")  # doctest: +SKIP
        [20, 22, 9, 23, 23, 4, 19, 18, 9]
    """
    encode, tokenizer = encoder(processor, language=language), processor.tokenizer

    def encode_target(text: str) -> list[int]:
        ids = encode(text)
        if not ids:
            raise ValueError(f"no letter is left of the text {text!r}; mend or remove the row")
        if tokenizer.pad_token_id in ids:
            raise ValueError(f"the text {text!r} holds {tokenizer.pad_token}, which is CTC's blank; mend the text")
        return ids

    return encode_target


def target_fault(
    frames: FrameCount, encode: Encode, text: str, n_samples: int, *, mask_time_length: int | None = None
) -> str | None:
    """Why a clip cannot be trained on, or None if it can.

    Args:
        frames: of the model.
        encode: from `target_encoder`.
        text: the transcript.
        n_samples: of the clip as the model hears it, 16 kHz.
        mask_time_length: frames of a SpecAugment mask, where there are masks.
    """
    try:
        ids = encode(text)
    except ValueError as error:
        return str(error)
    n_frames, needed = frames(n_samples), frames_needed(ids)
    duration = f"{n_samples / SAMPLE_RATE_HZ:.3f} s"
    if n_frames < 1:
        return f"the clip is {duration} long, shorter than what the model makes one frame of; remove the row"
    if needed > n_frames:
        repeated = needed - len(ids)
        blanks = f" and {repeated} blanks between equal neighbours" if repeated else ""
        return (
            f"the text {text!r} takes {needed} frames ({len(ids)} tokens{blanks}), but the model makes {n_frames} of "
            f"the clip's {duration}; is the text another clip's, or the clip cut off?"
        )
    if mask_time_length is not None and mask_time_length > n_frames:
        return (
            f"a mask of {mask_time_length} frames is longer than the {n_frames} frames of the clip's {duration}; "
            "set a smaller mask_time_length, or no spec_augment"
        )
    return None


def target_faults(
    model: nn.Module,
    processor: Any,
    utterances: Iterable[Utterance],
    durations_s: Iterable[float],
    *,
    language: str | None = None,
    mask_time_length: int | None = None,
) -> Iterator[str | None]:
    """`target_fault` of each utterance, with where it was read in front.

    Args:
        model, processor: a CTC model, and its feature extractor and tokenizer.
        utterances: what to look at.
        durations_s: of each, as the model hears it.
        language, mask_time_length: of `target_encoder` and `target_fault`.
    """
    frames, encode = FrameCount.of(model, processor.feature_extractor), target_encoder(processor, language)
    for utterance, duration_s in zip(utterances, durations_s, strict=True):
        n_samples = round(duration_s * SAMPLE_RATE_HZ)
        fault = target_fault(frames, encode, utterance.text, n_samples, mask_time_length=mask_time_length)
        yield None if fault is None else f"{utterance.where}: {fault}"


def check_targets(model: nn.Module, processor: Any, clips: Clips, **how: Any) -> None:
    """Nothing if every clip can be trained on.

    Args:
        model, processor, how: as of `target_faults`.
        clips: with their channel.

    Raises:
        DataError: those that cannot, by file and row, each with its reason.
    """
    found = clip_faults(model, processor, clips, **how)
    raise_faults([fault for fault in found if fault is not None], len(clips))


def clip_faults(model: nn.Module, processor: Any, clips: Clips, **how: Any) -> list[str | None]:
    """`target_faults` of clips as they sound after their channel."""
    durations_s = [duration_s * clips.channel.stretch for duration_s in clips.durations_s]
    return list(target_faults(model, processor, clips.utterances, durations_s, **how))


def raise_faults(faults: Sequence[str], total: int) -> None:
    """Nothing if there are none.

    Raises:
        DataError: the first `LISTED` of them, and how many more there are.
    """
    if faults:
        rest = [f"… and {len(faults) - LISTED} more"] if len(faults) > LISTED else []
        headline = f"{len(faults)} of {total} utterances cannot be trained on with CTC:"
        raise DataError("\n  ".join([headline, *faults[:LISTED], *rest]))
