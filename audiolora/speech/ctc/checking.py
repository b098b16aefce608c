"""Speech checked before a CTC model is trained on it: every clip read, every text spelled, every target fitted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from audiolora.speech.checks.checking import check_utterances
from audiolora.speech.ctc.frames import FrameCount
from audiolora.speech.ctc.targets import target_encoder, target_fault
from audiolora.speech.data.audio import SAMPLE_RATE_HZ
from audiolora.speech.data.manifests import Reading, Utterance

if TYPE_CHECKING:
    from audiolora.speech.ctc.models import LoadedCtc


def check_for_ctc(
    data: Sequence[Utterance] | Reading,
    loaded: LoadedCtc,
    *,
    language: str | None = None,
    stretch: float = 1.0,
    skip_bad: bool = False,
    bad_rows: Path | None = None,
    progress: bool = True,
) -> list[Utterance]:
    """`check_utterances`, and what CTC asks besides: see `speech.ctc.targets`.

    Args:
        data: the utterances of all parts; with `read_all`, also the rows that could not be read.
        loaded: the model, with its alphabet.
        language: code of the texts' language.
        stretch: how many times as long a clip lasts after its channel.
        skip_bad: leave bad utterances out, logging each with its reason, instead of raising.
        bad_rows: where to list every bad row with its reason (.tsv).
        progress: draw a progress bar on stderr.

    Returns: the utterances that are fit to train on, in order.

    Raises:
        DataError: any bad utterance (all of them in one error); with `skip_bad`, only when none is left.

    >>> check_for_ctc(read_utterances("train.jsonl"), load_ctc("facebook/wav2vec2-base-960h"))  # doctest: +SKIP
    """
    frames = FrameCount.of(loaded.model, loaded.processor.feature_extractor)
    encode = target_encoder(loaded.processor, language)
    return check_utterances(
        data,
        stretch=stretch,
        encode=encode,
        misfit=lambda text, length_s: target_fault(frames, encode, text, round(length_s * SAMPLE_RATE_HZ)),
        skip_bad=skip_bad,
        bad_rows=bad_rows,
        progress=progress,
    )
