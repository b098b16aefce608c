"""Speech checked before a CTC model is trained on it: every clip read, every text spelled, every target fitted."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from audiolora.speech.audio import duration_s
from audiolora.speech.ctc.targets import raise_faults, target_encoder, target_faults
from audiolora.speech.manifests import Utterance, check_utterances

if TYPE_CHECKING:
    from audiolora.speech.ctc.models import LoadedCtc

logger = logging.getLogger(__name__)


def check_for_ctc(
    utterances: Sequence[Utterance],
    loaded: LoadedCtc,
    *,
    language: str | None = None,
    stretch: float = 1.0,
    skip_bad: bool = False,
    progress: bool = True,
) -> list[Utterance]:
    """`check_utterances`, and what CTC asks besides: see `speech.ctc.targets`.

    Args:
        utterances: all parts together.
        loaded: the model, with its alphabet.
        language: code of the texts' language.
        stretch: how many times as long a clip lasts after its channel.
        skip_bad: leave bad utterances out, logging each with its reason, instead of raising.
        progress: draw a progress bar on stderr.

    Returns: the utterances that are fit to train on, in order.

    Raises:
        DataError: any bad utterance (all of one kind in one error); with `skip_bad`, only when none is left.

    >>> check_for_ctc(read_utterances("train.jsonl"), load_ctc("facebook/wav2vec2-base-960h"))  # doctest: +SKIP
    """
    readable = check_utterances(
        utterances,
        encode=target_encoder(loaded.processor, language),
        stretch=stretch,
        skip_bad=skip_bad,
        progress=progress,
    )
    durations_s = (stretch * duration_s(utterance.audio, name=utterance.where) for utterance in readable)
    faults = list(target_faults(loaded.model, loaded.processor, readable, durations_s, language=language))
    told = [fault for fault in faults if fault is not None]
    if not skip_bad or len(told) == len(readable):
        raise_faults(told, len(readable))
    for fault in told:
        logger.warning("skipped %s", fault)
    return [utterance for utterance, fault in zip(readable, faults, strict=True) if fault is None]
