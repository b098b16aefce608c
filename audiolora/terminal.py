"""Where a command's results and its remarks go: results to stdout or a file, remarks to stderr."""

from __future__ import annotations

import sys
from pathlib import Path

EXIT_LEFT_OUT = 3  # bad inputs were left out, as asked


def write_result(text: str, out: Path | None) -> None:
    """To the file, whole or not at all; to stdout without one, or where the file cannot be written."""
    from audiolora.files import write_text

    if out is None:
        sys.stdout.write(text)
        return
    try:
        write_text(out, text)
    except OSError:
        sys.stdout.write(text)  # the work took long: what it found is not thrown away
        raise


def say(line: str) -> None:
    """A remark to whoever sits at the terminal."""
    print(line, file=sys.stderr, flush=True)


def prepare_transformers() -> None:
    """Before anything imports it: nothing broken beside it, and none of its own bars and warnings among our lines."""
    import warnings

    from audiolora.speech.sound.torchaudio_extra import require_working_torchaudio_or_none

    require_working_torchaudio_or_none()
    from transformers.utils import logging

    logging.disable_progress_bar()
    # PEFT reads an attribute that transformers has renamed; no user can do anything about it.
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
