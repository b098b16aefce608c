"""The times of a segment as manifests write them, always in seconds: `start` and `end`, or NeMo's `offset` and
`duration`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NEMO_AUDIO = "audio_filepath"
"""NeMo's column: a `duration` beside it is that of the whole file where the row has no `offset`."""


def segment_times(record: Mapping[Any, Any], audio_column: str) -> tuple[float, float | None, bool] | None:
    """Which part of its file a row is: the first three arguments of a `Segment` behind its source.

    Args:
        record: the row.
        audio_column: its column with the audio.

    Returns: (start, duration or None for up to the end, whether that is all of the file), seconds; None where the row
        says nothing and means its whole file.

    Raises:
        ValueError: a time that is no number, both ways of writing at once, or an end that is not behind its start.

    >>> segment_times({"start": 1.5, "end": "4"}, "audio"), segment_times({"text": "hello"}, "audio")
    ((1.5, 2.5, False), None)
    >>> segment_times({"audio_filepath": "call.wav", "offset": 1.5, "duration": 2.5}, "audio_filepath")
    (1.5, 2.5, False)
    """
    start, end, offset = (_seconds(record, column) for column in ("start", "end", "offset"))
    if offset is not None and (start is not None or end is not None):
        raise ValueError("has both offset and start or end; a segment is written offset and duration, or start and end")
    if offset is not None:
        return offset, _seconds(record, "duration"), False
    if start is not None or end is not None:
        start = start or 0.0
        if end is None:
            return start, None, False
        if end <= start:
            raise ValueError(f"the segment ends at {end:g} s, and starts at {start:g} s; mend start and end")
        return start, _difference(end, start), False
    if audio_column == NEMO_AUDIO and (duration := _seconds(record, "duration")) is not None:
        return 0.0, duration, True
    return None


def _seconds(record: Mapping[Any, Any], column: str) -> float | None:
    written = record.get(column)
    if written is None or written == "":
        return None
    try:
        if not isinstance(written, (int, float, str)) or isinstance(written, bool):
            raise ValueError(written)
        return float(written)
    except ValueError:
        raise ValueError(f"{column} must be a number of seconds, got {written!r}") from None


def _difference(end: float, start: float) -> float:
    """To the nanosecond: 4.1 - 1.5 is 2.5999999999999996 in binary, and that is not what the manifest says."""
    return round(end - start, 9)
