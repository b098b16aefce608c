"""CTC runs on the command line: each adapter with the processor that lies beside it, or all with one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from audiolora.export.ctc import ctc_task

_PROCESSOR = "processor"


def processors(adapters: Mapping[str, Path], named: Path | None) -> tuple[Path, dict[str, Path]] | None:
    """The base's processor, and by id those that lie in adapters' folders or beside them; None where there is none.

    Args:
        adapters: id → folder.
        named: the base's; default the first adapter's.
    """
    places = {name: (folder / _PROCESSOR, folder.parent / _PROCESSOR) for name, folder in adapters.items()}
    own = {name: place for name, pair in places.items() for place in reversed(pair) if place.is_dir()}
    base = named if named is not None else next(iter(own.values()), None)
    return None if base is None else (base, own)


def ctc_settings_of(model: nn.Module, ids: Mapping[str, str], base: Path, own: Mapping[str, Path]) -> dict[str, Any]:
    """For `export`: the processor, the task, and the tasks of adapters that have another alphabet.

    Args:
        model: with the adapters.
        ids: PEFT's name → id.
        base, own: from `processors`.

    Raises:
        ValueError: no processor in a folder, or one of another model.
    """
    processor = _loaded(base)
    task = ctc_task(model, processor)
    tasks = {peft: ctc_task(model, _loaded(own[name])) for peft, name in ids.items() if name in own}
    return {"processor": processor, "task": task, "tasks": {peft: each for peft, each in tasks.items() if each != task}}


def _loaded(folder: Path) -> Any:
    from transformers import Wav2Vec2Processor

    try:
        return Wav2Vec2Processor.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{folder}: no Wav2Vec2Processor ({error}); name the folder that processor.save_pretrained wrote"
        ) from error
