"""Audio files in, texts out: files are found and checked, and their texts laid out."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from audiolora.speech.data.audio import AudioError
from audiolora.speech.data.rows import AUDIO_SUFFIXES
from audiolora.speech.texts.transcription import Segment, Transcription

if TYPE_CHECKING:
    from audiolora.speech.texts.recordings import Recording

Format = Literal["text", "json", "tsv", "srt", "vtt"]


@dataclass(frozen=True)
class Transcript:
    """A file and what is said in it.

    Example:
        >>> Transcript(Path("a.wav"), Transcription(1.5, (Segment(0.0, 1.5, "Hello."),))).said.text
        'Hello.'
    """

    audio: Path
    said: Transcription


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


def check_audio_files(files: Sequence[Path]) -> tuple[list[tuple[Path, Recording]], list[str]]:
    """Read every file once, so that each fault is known before the first is decoded; nothing of it stays in memory.

    Returns:
        The files that can be heard, opened; and for each other one, what is wrong with it.
    """
    from audiolora.speech.texts.recordings import open_recording

    good, bad = [], []
    for file in files:
        try:
            good.append((file, open_recording(file, name=_shown(file))))
        except AudioError as error:
            bad.append(str(error))
        except OSError as error:
            bad.append(f"{_shown(file)}: cannot be read ({error.strerror})")
    return good, bad


def render(transcripts: Sequence[Transcript], layout: Format, *, alone: bool, timed: bool = False) -> str:
    r"""The texts as they are written out.

    Args:
        transcripts: in order.
        layout: "text" is one line a file, path and text with a tab between; "tsv" the same with a header; "json" a list
            of objects with `audio`, `duration_s`, `text` and `segments`; "srt" and "vtt" are captions of one file.
        alone: a single file was asked for, so that "text" needs no path.
        timed: "tsv" has a line a segment with its times.

    Returns:
        Lines, the last one ended as well. A text is one line: runs of white space become a space.

    Example:
        >>> said = Transcription(1.5, (Segment(0.0, 1.5, "Hello."),))
        >>> render([Transcript(Path("a.wav"), said)], "text", alone=False)
        'a.wav\tHello.\n'
    """
    if layout in ("srt", "vtt"):
        from audiolora.speech.texts.captions import srt, vtt

        [transcript] = transcripts
        return (srt if layout == "srt" else vtt)(transcript.said)
    if layout == "json":
        return json.dumps([_object(transcript) for transcript in transcripts], indent=2, ensure_ascii=False) + "\n"
    if layout == "tsv" and timed:
        rows = [
            (_shown(t.audio), f"{s.start_s:.2f}", f"{s.end_s:.2f}", _line(s.text))
            for t in transcripts
            for s in t.said.segments
        ]
        return "".join("\t".join(row) + "\n" for row in [("audio", "start_s", "end_s", "text"), *rows])
    plain = [(_shown(t.audio), _line(t.said.text)) for t in transcripts]
    lines = [text if alone and layout == "text" else f"{audio}\t{text}" for audio, text in plain]
    return "".join(f"{line}\n" for line in (["audio\ttext"] if layout == "tsv" else []) + lines)


def _line(text: str) -> str:
    return " ".join(text.split())


def _object(transcript: Transcript) -> dict[str, object]:
    said = transcript.said
    return {
        "audio": _shown(transcript.audio),
        "duration_s": round(said.duration_s, 3),
        "text": _line(said.text),
        "segments": [_told(segment) for segment in said.segments],
    }


def _told(segment: Segment) -> dict[str, object]:
    """A segment's fields, without those that nothing was asked of, its numbers as short as they are exact."""
    told: dict[str, object] = {"start_s": round(segment.start_s, 3), "end_s": round(segment.end_s, 3)}
    told["text"] = _line(segment.text)
    if segment.language:
        told["language"] = segment.language
    if segment.words:
        told["words"] = [
            {"start_s": w.start_s, "end_s": w.end_s, "text": w.text, "probability": round(w.probability, 4)}
            for w in segment.words
        ]
    for name in ("log_probability", "compression_ratio", "no_speech"):
        if getattr(segment, name) is not None:
            told |= {"temperature": segment.temperature, name: round(getattr(segment, name), 4)}
    return told


def write_captions(transcripts: Sequence[Transcript], layout: Format, folder: Path) -> list[Path]:
    """A file of captions for each transcript, named after its audio.

    Raises:
        ValueError: two of them would have one name.
    """
    from audiolora.files import write_text

    paths = caption_paths([transcript.audio for transcript in transcripts], layout, folder)
    folder.mkdir(parents=True, exist_ok=True)
    for path, transcript in zip(paths, transcripts, strict=True):
        write_text(path, render([transcript], layout, alone=True))
    return paths


def caption_paths(files: Sequence[Path], layout: Format, folder: Path) -> list[Path]:
    """Where the captions of each audio file go.

    Raises:
        ValueError: two of them would have one name.
    """
    of: dict[Path, Path] = {}
    for file in files:
        path = folder / f"{file.stem}.{layout}"
        if path in of:
            raise ValueError(
                f"the captions of {_shown(of[path])} and of {_shown(file)} would both be {_shown(path)}; take a folder "
                "at a time, or rename one"
            )
        of[path] = file
    return list(of)


def _shown(path: Path) -> str:
    """The path as text that can be printed: bytes that are not UTF-8 replaced, tabs and line ends escaped."""
    text = os.fsencode(path).decode("utf-8", errors="replace")
    return text.replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")
