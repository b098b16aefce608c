"""What the processes of a run do together beside training: opening its folder, and decoding, each its share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list, gather_object

from audiolora.run import Run, open_run
from audiolora.speech.training.clips import Clips
from audiolora.speech.training.trainer import this_process
from audiolora.speech.whisper.decode import transcribe


def open_together(folder: Path, settings: Mapping[str, Any], *, fresh: bool = False) -> Run:
    """`open_run` in every process; the first begins the run, or deletes the old one, and the others find it.

    Raises:
        ValueError: the folder holds a run with other settings (each difference is named), or something else.
    """
    process = this_process()
    with process.main_process_first():
        return open_run(folder, settings, fresh=fresh and process.is_main_process)


def transcribe_together(
    model: Any, processor: Any, clips: Clips, *, by: Callable[..., list[str]] = transcribe, **how: Any
) -> list[str]:
    """The texts of clips, decoded by the processes together; a text does not depend on which of them decodes it.

    A Whisper decodes each clip in the clip's own language.

    Args:
        model, processor: as ``by`` takes them, the same in every process.
        clips: each process reads its share.
        by: `transcribe` for a Whisper, `transcribe_ctc` for a CTC model.
        how: more of its arguments.

    Returns:
        The texts of all clips, in every process.

    Example:
        >>> transcribe_together(model, processor, heard, context="full")  # doctest: +SKIP
        ['You entered the code correctly.']
    """
    process = this_process()
    own = range(process.process_index, len(clips), process.num_processes)
    texts: list[str] = []
    if own:
        audios = [clips[index]["audio"] for index in own]
        if by is transcribe:
            languages = clips.languages()
            how = {"language": [languages[index] for index in own], **how}
        texts = by(model, processor, audios, progress=process.is_main_process, **how)
    if process.num_processes == 1:
        return texts
    return [text for _, text in sorted(gather_object(list(zip(own, texts, strict=True))))]


def zero_shot(run: Run, model: Any, processor: Any, clips: Clips, **how: Any) -> list[str]:
    """The texts in the run's ``before.json``; where they are not there yet, they are decoded and written.

    Args:
        run: of the first process is read and written.
        model, processor, clips, how: see `transcribe_together`.

    Raises:
        ValueError: ``before.json`` is not JSON.
    """
    process = this_process()
    found = [run.read("before.json") if process.is_main_process else None]
    if process.num_processes > 1:
        broadcast_object_list(found)
    if found[0] is not None:
        return found[0]
    texts = transcribe_together(model, processor, clips, **how)
    if process.is_main_process:
        run.write("before.json", texts)
    return texts
