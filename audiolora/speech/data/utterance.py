"""One clip and what is said in it."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from audiolora.speech.data.rows import DataError
from audiolora.speech.data.sources import AudioSource

_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Utterance:
    """One clip and what is said in it.

    Args:
        id: unique in its set.
        audio: path of the audio file, the file's bytes, or a source that tells where it lies (a segment of a file, a
            member of a tar, …); `read_audio` takes each of them.
        text: the transcript.
        where: where it was read, for errors: `train.jsonl row 12`.
        speaker: who speaks, where the data says so.
        language: what is spoken, where the data says so, as written there: `it`, `pt-BR`.
        part: train, dev or test, where the data brings parts of its own.

    >>> Utterance(id="a", audio=b"RIFF...", text="hello", where="train.jsonl row 1").speaker is None
    True
    """

    id: str
    audio: AudioSource
    text: str
    where: str
    speaker: str | None = None
    language: str | None = None
    part: str | None = None

    def __post_init__(self) -> None:
        if not self.id:
            raise DataError(f"{self.where}: the id is empty")
        if _SURROGATE.search(self.id):
            raise DataError(f"{self.where}: the id {self.id!a} is not Unicode; rename the file, or give the row an id")
        if not self.text.strip():
            raise DataError(f"{self.where}: the text is empty; transcribe the clip or remove the row", kind="no-text")
        if _SURROGATE.search(self.text):
            raise DataError(
                f"{self.where}: the text holds half a surrogate pair, which is not Unicode; write it as UTF-8",
                kind="vocabulary",
            )
        if self.part not in (None, "train", "dev", "test"):
            raise DataError(f"{self.where}: part must be train, dev or test, got {self.part!r}")
        if isinstance(self.audio, Path) and (fault := file_fault(self.audio)):
            raise DataError(f"{self.where}: {fault}", kind="missing")


def file_fault(path: Path) -> str | None:
    """Why there is no audio file of this path; None where there is a file."""
    if os.path.isfile(path):  # unlike the path's own, it does not raise for a name that is too long
        return None
    fault = "is a folder, not an audio file" if os.path.isdir(path) else "does not exist"
    return f"audio file {path} {fault}"
