"""One clip and what is said in it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from audiolora.speech.rows import DataError


@dataclass(frozen=True)
class Utterance:
    """One clip and what is said in it.

    Args:
        id: unique in its set.
        audio: path of the audio file, or the file's bytes.
        text: the transcript.
        where: where it was read, for errors: `train.jsonl row 12`.
        speaker: who speaks, where the data says so.
        language: what is spoken, where the data says so, as written there: `it`, `pt-BR`.

    >>> Utterance(id="a", audio=b"RIFF...", text="hello", where="train.jsonl row 1").speaker is None
    True
    """

    id: str
    audio: Path | bytes
    text: str
    where: str
    speaker: str | None = None
    language: str | None = None

    def __post_init__(self) -> None:
        if not self.id:
            raise DataError(f"{self.where}: the id is empty")
        if not self.text.strip():
            raise DataError(f"{self.where}: the text is empty; transcribe the clip or remove the row")
        if any("\ud800" <= character <= "\udfff" for character in self.text):
            raise DataError(
                f"{self.where}: the text holds half a surrogate pair, which is not Unicode; write it as UTF-8"
            )
        if isinstance(self.audio, Path) and not self.audio.is_file():
            fault = "is a folder, not an audio file" if self.audio.is_dir() else "does not exist"
            raise DataError(f"{self.where}: audio file {self.audio} {fault}")
