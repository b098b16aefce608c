"""Audio files in, texts out: files are found, checked, read by the hour, and their texts laid out."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from audiolora.speech.audio import MAX_DURATION_S, SAMPLE_RATE_HZ, AudioError, read_audio
from audiolora.speech.rows import AUDIO_SUFFIXES

if TYPE_CHECKING:
    import numpy as np

HELD_S = 3600.0
"""Audio held in memory at once: an hour is 230 MB."""

Format = Literal["text", "json", "tsv"]


@dataclass(frozen=True)
class Transcript:
    """A file, its duration in seconds, and what is said in it.

    Example:
        >>> Transcript(Path("a.wav"), 1.5, "Hello.").text
        'Hello.'
    """

    audio: Path
    duration_s: float
    text: str


def find_audio(paths: Sequence[Path]) -> list[Path]:
    """The files named, and the audio files below the folders named: in order, each once, hidden ones left out.

    Raises:
        ValueError: nothing is named, or a folder holds no audio.

    Example:
        >>> find_audio([Path("a.wav"), Path("b.flac"), Path("a.wav")])
        [PosixPath('a.wav'), PosixPath('b.flac')]
    """
    if not paths:
        raise ValueError("name at least one audio file, or a folder of them")
    found: dict[Path, None] = {}
    for path in paths:
        if not path.is_dir():
            found[path] = None  # also one that does not exist: reading it tells so
            continue
        below = [file for file in sorted(path.rglob("*")) if _is_audio(file, path)]
        if not below:
            raise ValueError(f"{path}: holds no audio ({', '.join(sorted(AUDIO_SUFFIXES))})")
        found.update(dict.fromkeys(below))
    return list(found)


def _is_audio(file: Path, folder: Path) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
    return file.suffix.lower() in AUDIO_SUFFIXES and not hidden and not file.is_dir()


def check_audio_files(files: Sequence[Path]) -> tuple[list[tuple[Path, float]], list[str]]:
    """Read every file once, so that each fault is known before the first is decoded.

    Returns:
        The files that Whisper can hear with their durations in seconds; and for each other one, what is wrong with it.
    """
    good, bad = [], []
    for file in files:
        try:
            samples = read_audio(file, name=_shown(file), max_duration_s=MAX_DURATION_S)
        except AudioError as error:
            bad.append(str(error))
        except OSError as error:
            bad.append(f"{_shown(file)}: cannot be read ({error.strerror})")
        else:
            good.append((file, len(samples) / SAMPLE_RATE_HZ))
    return good, bad


def read_by_the_hour(
    files: Sequence[tuple[Path, float]], held_s: float = HELD_S
) -> Iterator[tuple[list[tuple[Path, float]], list[np.ndarray]]]:
    """Files and their samples (n_samples,), 16 kHz, in portions of at most `held_s`, at least a file each.

    Args:
        files: from `check_audio_files`.
        held_s: audio in memory at once, s.
    """
    portion: list[tuple[Path, float]] = []
    held = 0.0
    for file, duration_s in files:
        if portion and held + duration_s > held_s:
            yield portion, [read_audio(path) for path, _ in portion]
            portion, held = [], 0.0
        portion.append((file, duration_s))
        held += duration_s
    if portion:
        yield portion, [read_audio(path) for path, _ in portion]


def render(transcripts: Sequence[Transcript], layout: Format, *, alone: bool) -> str:
    r"""The texts as they are written out.

    Args:
        transcripts: in order.
        layout: "text" is one line a file, path and text with a tab between; "tsv" the same with a header; "json" a list
            of objects with `audio`, `duration_s` and `text`.
        alone: a single file was asked for, so that "text" needs no path.

    Returns:
        Lines, the last one ended as well. A text is one line: runs of white space become a space.

    Example:
        >>> render([Transcript(Path("a.wav"), 1.5, "Hello.")], "text", alone=False)
        'a.wav\tHello.\n'
    """
    rows = [(_shown(t.audio), round(t.duration_s, 3), " ".join(t.text.split())) for t in transcripts]
    if layout == "json":
        objects = [dict(zip(("audio", "duration_s", "text"), row, strict=True)) for row in rows]
        return json.dumps(objects, indent=2, ensure_ascii=False) + "\n"
    lines = [text if alone and layout == "text" else f"{audio}\t{text}" for audio, _, text in rows]
    return "".join(f"{line}\n" for line in (["audio\ttext"] if layout == "tsv" else []) + lines)


def _shown(path: Path) -> str:
    """The path as text that can be printed: bytes that are not UTF-8 replaced, tabs and line ends escaped."""
    text = os.fsencode(path).decode("utf-8", errors="replace")
    return text.replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")
