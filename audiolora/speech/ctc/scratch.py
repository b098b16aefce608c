"""A small wav2vec2 trained from scratch on real recordings of spoken digits, for where no pretrained one can be had."""

from __future__ import annotations

from typing import TYPE_CHECKING

from audiolora.packages import Log

if TYPE_CHECKING:
    from audiolora.speech.ctc.models import LoadedCtc

NAME = "scratch:spoken-digits"
"""What `load_ctc` and ``--model`` take."""


def load_scratch(*, log: Log = print) -> LoadedCtc:
    """The small wav2vec2 (2.2M parameters) trained from scratch on `spoken-digits`: once, then kept in the cache.

    Args:
        log: called with a sentence for each thing worth knowing.

    Raises:
        DataError: the recordings are not on this machine.
    """
    raise NotImplementedError
