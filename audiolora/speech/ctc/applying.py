"""CTC models on the command line: which runs and models are CTC's, and what turns their clips into texts."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from audiolora.packages import Log
from audiolora.speech.ctc.decoding import CtcDecoding

if TYPE_CHECKING:
    import numpy as np

    from audiolora.speech.texts.transcribing import Advance

PiecesDecoder = Callable[["Sequence[np.ndarray]", "Sequence[str]", "Advance"], "list[str | None]"]
"""What `ctc_decoder` returns."""


def is_ctc(adapter: Path | None, model: str | None) -> bool:
    """Whether what a command is to work with is a CTC model's.

    Args:
        adapter: a run's folder or an adapter's; or None.
        model: without an adapter: a hub name, a folder, ``scratch:spoken-digits``.

    Raises:
        ValueError: there is no adapter where one is named.
    """
    from audiolora.speech.ctc.adapter import is_ctc_adapter

    return is_ctc_adapter(adapter) if adapter is not None else is_ctc_model(str(model))


def is_ctc_model(name: str) -> bool:
    """Whether a model is one that `load_ctc` reads; False also where there is no such model, which loading will tell.

    Example:
        >>> is_ctc_model("scratch:spoken-digits")
        True
    """
    from audiolora.speech.ctc.models import FAMILIES
    from audiolora.speech.ctc.scratch import NAME as SCRATCH

    folder = Path(name).expanduser()
    if name == SCRATCH:
        return True
    if not folder.exists():
        return _hub_type(name) in FAMILIES
    try:
        says = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(says, dict) and says.get("model_type") in FAMILIES


def ctc_decoder(
    adapter: Path | None,
    name: str | None,
    base: str | None,
    *,
    language: str | None = None,
    context: str | None = None,
    batch_size: int = 8,
    decoding: CtcDecoding = CtcDecoding(),  # noqa: B008
    log: Log = print,
) -> PiecesDecoder:
    """What turns pieces of recordings into texts, with a run's adapter or a plain CTC model.

    Args:
        adapter: a run's folder or an adapter's; or None.
        name: of the model, without an adapter.
        base: another place for the adapter's base.
        language, context: Whisper's; a CTC model takes neither.
        batch_size: clips decoded at once.
        decoding: see `CtcDecoding`.
        log: called with a sentence for each thing worth knowing.

    Returns:
        (pieces (L,) 16 kHz, what to call each, what to tell how many are done) → their texts; None of a piece that is
        too short for one frame, as the last of a recording may be.

    Raises:
        ValueError: a language or a context, or what loading refuses.
    """
    for option, given in (("language", language), ("context", context)):
        if given is not None:
            raise ValueError(
                f"--{option} is Whisper's, and {adapter or name} is a CTC model, which writes what its alphabet has "
                "and hears each clip as long as it is; leave it out"
            )
    import torch

    from audiolora.speech.ctc.adapter import load_adapted_ctc
    from audiolora.speech.ctc.beam import ctc_decoder as decoder_of
    from audiolora.speech.ctc.decode import transcribe_ctc
    from audiolora.speech.ctc.frames import FrameCount
    from audiolora.speech.ctc.models import load_ctc

    model: Any
    if adapter is not None:
        model, loaded, _ = load_adapted_ctc(adapter, base=base, log=log)
    else:
        loaded = load_ctc(str(name), log=log)
        model = loaded.model
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    decoder = decoder_of(decoding, loaded.processor.tokenizer)  # once: it may read a large language model
    frames = FrameCount.of(model, loaded.processor.feature_extractor)

    def texts_of(pieces: Sequence[np.ndarray], names: Sequence[str], advance: Advance) -> list[str | None]:
        heard = [index for index, piece in enumerate(pieces) if frames(len(piece)) > 0]
        advance(len(pieces) - len(heard))
        texts: list[str | None] = [None] * len(pieces)
        found = transcribe_ctc(
            model, loaded.processor, [pieces[index] for index in heard], batch_size=batch_size, decoder=decoder,
            progress=advance, names=[names[index] for index in heard],
        )  # fmt: skip
        for index, text in zip(heard, found, strict=True):
            texts[index] = text
        return texts

    return texts_of


def _hub_type(name: str) -> str | None:
    """``model_type`` of a hub model, or None where it cannot be had."""
    from transformers import AutoConfig

    from audiolora.speech.whisper.weights import hub_obstacle

    try:
        config = AutoConfig.from_pretrained(name, local_files_only=hub_obstacle() is not None)
    except (OSError, ValueError):
        return None
    model_type: str = config.model_type
    return model_type
