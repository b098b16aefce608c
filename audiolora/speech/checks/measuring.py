"""The facts of many clips: from the cache where they are kept, else measured on worker processes."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager

from audiolora.speech.checks.clip_cache import ClipCache, ClipKey, clip_key
from audiolora.speech.checks.clip_crew import Crew
from audiolora.speech.checks.clip_facts import ClipFacts, measure_clip
from audiolora.speech.data.audio import duration_s
from audiolora.speech.data.sources import AudioSource, Segment
from audiolora.speech.data.utterance import Utterance

_FEW_CLIPS = 200  # fewer are measured sooner than a process starts
_CHUNK = 32  # clips a worker is sent at once
_KEEP_EVERY_S = 2.0


def measure_clips(
    clips: Sequence[AudioSource],
    *,
    workers: int | None = None,
    cache: ClipCache | None = None,
    progress: bool = True,
) -> list[ClipFacts]:
    """Measure clips; those that the cache knows as they are now are not read.

    What is measured is kept every few seconds, so that a run that is interrupted goes on where it was.

    Args:
        clips: as `measure_clip` takes them.
        workers: processes that decode; 0 decodes in this one; by default a process for each core that this one may
            use, and none for a few clips.
        cache: of earlier facts; None measures everything.
        progress: draw a bar on standard error with the rate and the time that is left.

    Returns: the facts of each clip, in order.

    Raises:
        ValueError: a negative number of workers.
        RuntimeError: a worker process does not start.

    >>> measure_clips([Path("a.wav"), Path("b.wav")], cache=ClipCache())  # doctest: +SKIP
    """
    if workers is not None and workers < 0:
        raise ValueError(f"workers must not be negative, got {workers}; 0 decodes in the main process")
    keys = [clip_key(clip) for clip in clips]
    found: list[ClipFacts | None] = [None] * len(clips) if cache is None else cache.find(keys)
    first: dict[object, int] = {}  # rows of one file are measured once
    for index in (i for i, facts in enumerate(found) if facts is None):
        first.setdefault(keys[index] or index, index)
    todo = list(first.values())
    if workers is None:
        workers = 0 if len(todo) < _FEW_CLIPS else cores()
    news: list[tuple[ClipKey | None, ClipFacts]] = []
    kept_at = time.monotonic()
    try:
        with _bar("checking clips", len(clips), len(clips) - len(todo), progress) as advance:
            for index, facts in _measured(clips, todo, workers):
                found[index] = facts
                news.append((keys[index], facts))
                advance()
                if cache is not None and time.monotonic() - kept_at > _KEEP_EVERY_S:
                    cache.keep(news)
                    news, kept_at = [], time.monotonic()
    finally:
        if cache is not None and todo:
            cache.keep(news)
            cache.drop_oldest()
    return [facts or found[first[keys[i] or i]] for i, facts in enumerate(found)]  # type: ignore[misc]


def durations_s(utterances: Sequence[Utterance]) -> tuple[float, ...]:
    """Length of each clip in seconds: as it was measured before, else from its header; see `audio.duration_s`.

    Raises:
        AudioError: a missing file, or no audio.

    >>> durations_s(read_utterances("train.jsonl"))  # doctest: +SKIP
    (2.5, 3.25)
    """
    clips = [utterance.audio for utterance in utterances]
    # A segment's own duration is there without a look; bytes are opened sooner than their digest is made.
    keys = [None if isinstance(clip, (Segment, bytes)) else clip_key(clip) for clip in clips]
    return tuple(
        facts.duration_s if facts is not None and facts.fault is None else duration_s(one.audio, name=one.where)
        for one, facts in zip(utterances, ClipCache().find(keys), strict=True)
    )


def cores() -> int:
    """Cores that this process may use; its share of them where `accelerate launch` started several beside it."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, usable // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def _measured(clips: Sequence[AudioSource], todo: Sequence[int], workers: int) -> Iterator[tuple[int, ClipFacts]]:
    """The clips `todo`, measured, in order; no more than a few chunks are under way at any time."""
    if workers == 0 or not todo:
        for index in todo:
            yield index, measure_clip(clips[index])
        return
    crew = Crew(min(workers, -(-len(todo) // _CHUNK)))
    under_way: deque[tuple[Sequence[int], Future[list[ClipFacts]]]] = deque()
    try:
        for start in range(0, len(todo), _CHUNK):
            chunk = todo[start : start + _CHUNK]
            under_way.append((chunk, crew.measure([clips[index] for index in chunk])))
            if len(under_way) > 4 * crew.size:
                done, facts = under_way.popleft()
                yield from zip(done, facts.result(), strict=True)
        while under_way:
            done, facts = under_way.popleft()
            yield from zip(done, facts.result(), strict=True)
    finally:
        crew.end()


@contextmanager
def _bar(title: str, total: int, known: int, shown: bool) -> Iterator[Callable[[], None]]:
    """A progress bar on standard error: how many of the total, how many a second, and the time left."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text("" if task.speed is None else f"{task.speed:,.0f} a second", style="dim")

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn())
    console = Console(stderr=True)
    seen = shown and (console.is_terminal or console.is_jupyter)
    with Progress(*columns, console=console, transient=True, disable=not seen) as bar:
        task = bar.add_task(title, total=total - known)
        yield lambda: bar.advance(task)
