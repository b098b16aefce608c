"""Where a clip lies: a file, a segment of one, a member of a tar, a cell of a table.

A source is a reference, not the sound: small, frozen, comparable and picklable, so that hundreds of thousands of them
stay in memory and each clip is read where it is wanted, in the worker processes of a DataLoader too. `read_audio` and
`duration_s` take every one of them.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

OVERSHOOT_S = 0.5
"""How far the end of a segment may lie behind the end of its file and is then cut there, as by Kaldi's
extract-segments (max-overshoot); lists round to hundredths of a second, and whole files are listed as segments."""


class AudioError(ValueError):
    """A clip that cannot be used.

    Args:
        message: names the file, the rule and the remedy.
        kind: what is wrong, a key of `findings.KINDS`.
    """

    def __init__(self, message: str, *, kind: str = "corrupt") -> None:
        super().__init__(message)
        self.kind = kind


class Source(ABC):
    """A clip that is not a file of its own; its string is its name for people."""

    __slots__ = ()

    @property
    @abstractmethod
    def file(self) -> Path:
        """The file on disk that holds it."""

    @abstractmethod
    def read(self) -> bytes:
        """The content of the audio file that is stored there.

        Raises:
            AudioError: it is no longer there.
        """


@dataclass(frozen=True, slots=True)
class TarMember(Source):
    """An audio file in an uncompressed tar.

    Args:
        tar: the archive.
        name: of the member.
        offset: of its first byte in the archive.
        size: of its content, bytes.

    >>> str(TarMember(Path("shards-000.tar"), "a.wav", offset=512, size=32044))
    'shards-000.tar: a.wav'
    """

    tar: Path
    name: str
    offset: int
    size: int

    @property
    def file(self) -> Path:
        """The archive."""
        return self.tar

    def read(self) -> bytes:
        """See `Source.read`."""
        try:
            with open(self.tar, "rb") as tar:
                tar.seek(self.offset)
                content = tar.read(self.size)
        except OSError as error:
            raise AudioError(f"{self}: cannot be read ({error})", kind="unreadable") from error
        if len(content) < self.size:
            raise AudioError(
                f"{self}: {len(content)} of {self.size} bytes are there; fetch the archive again", kind="truncated"
            )
        return content

    def __str__(self) -> str:
        return f"{self.tar}: {self.name}"


@dataclass(frozen=True, slots=True)
class Segment(Source):
    """A part of a longer clip.

    It is cut at the rate of its file, from sample round(start_s · rate) up to sample round((start_s + duration_s) ·
    rate), and brought to 16 kHz after that.

    Args:
        source: the longer clip.
        start_s: where the part begins, seconds.
        duration_s: how long it is, seconds; None goes to the end. Up to `OVERSHOOT_S` past the end is cut there.
        whole: the part is all there is, and `duration_s` what a manifest says of it: another length is an error.

    Raises:
        ValueError: times that are not finite or make no segment, or a segment of a segment.

    >>> str(Segment(Path("call.wav"), 2.5, 1.5))
    'call.wav (2.5 to 4 s)'
    """

    source: Path | Source
    start_s: float = 0.0
    duration_s: float | None = None
    whole: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.source, Segment):
            raise ValueError(f"{self.source}: a segment is cut out of a file, not out of another segment")
        if not (math.isfinite(self.start_s) and self.start_s >= 0):
            raise ValueError(f"{self.source}: a segment starts at 0 s or later, got {self.start_s!r}")
        if self.duration_s is not None and not (math.isfinite(self.duration_s) and self.duration_s > 0):
            raise ValueError(f"{self.source}: a segment lasts more than 0 s, got {self.duration_s!r}")
        if self.whole and (self.start_s or self.duration_s is None):
            raise ValueError(f"{self.source}: a whole file starts at 0 s and has a duration, got {self.start_s!r}")

    @property
    def file(self) -> Path:
        """The file on disk that holds it."""
        return self.source if isinstance(self.source, Path) else self.source.file

    def read(self) -> bytes:
        """The content of the whole audio file, the part is in it; see `bounds`."""
        if isinstance(self.source, Source):
            return self.source.read()
        try:
            return self.source.read_bytes()
        except OSError as error:
            raise AudioError(f"{self.source}: cannot be read ({error})", kind="unreadable") from error

    def bounds(self, n_samples: int, rate_hz: int, called: str) -> tuple[int, int]:
        """The samples [first, stop) of a file of `n_samples` at `rate_hz` that are the part.

        Raises:
            AudioError: the file is too short for it, or, of a `whole` one, not as long as it was said to be.
        """
        length_s = n_samples / rate_hz
        if self.whole and self.duration_s is not None:
            if abs(length_s - self.duration_s) > OVERSHOOT_S:
                raise AudioError(
                    f"{called}: lasts {length_s:.2f} s, and its row says duration {self.duration_s:g}; mend it, or add "
                    "an offset (0, say) to have that much of the file",
                    kind="times",
                )
            return 0, n_samples
        first = round(self.start_s * rate_hz)
        stop = n_samples if self.duration_s is None else round((self.start_s + self.duration_s) * rate_hz)
        if stop > n_samples + OVERSHOOT_S * rate_hz or first >= n_samples:
            raise AudioError(
                f"{called}: the file ends at {length_s:.2f} s, before the segment does; mend its times", kind="times"
            )
        if stop <= first:
            raise AudioError(f"{called}: the segment is shorter than a sample; mend its times", kind="times")
        return first, min(stop, n_samples)

    def __str__(self) -> str:
        if self.whole:
            return str(self.source)
        end = "the end" if self.duration_s is None else f"{self.start_s + self.duration_s:.10g} s"
        return f"{self.source} ({self.start_s:.10g} to {end})"


AudioSource = Path | bytes | Source
"""A clip: the path of its file, the file's bytes, or a reference to where it lies."""


def file_of(audio: AudioSource) -> Path | None:
    """The file on disk that holds a clip, to see whether it changed; None for bytes.

    >>> file_of(Segment(Path("call.wav"), 2.5, 1.5))
    PosixPath('call.wav')
    """
    if isinstance(audio, bytes):
        return None
    return audio if isinstance(audio, Path) else audio.file
