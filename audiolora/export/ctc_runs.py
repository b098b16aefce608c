"""CTC runs on the command line: each adapter with the processor that lies beside it, or all with one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from audiolora.export.ctc import ctc_task
from audiolora.export.ctc_settings import CtcSettings
from audiolora.export.exporting import Exported, export

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


def export_ctc_runs(runs: Mapping[str, Path], out: Path, *, base: Path | None = None, **settings: Any) -> Exported:
    """The adapters of a CTC recipe's runs over one base, each with the texts that its run's own decoding writes.

    Where the adapters have output layers of their own, the bundle's base has the first one's: without an adapter there
    is none for that alphabet.

    Args:
        runs: by id, a run's folder or an adapter's.
        out: the bundle's folder.
        base: another place for the base's weights than the one that the runs name.
        settings: of `export`.

    Raises:
        ValueError: runs over different bases, runs with and without output layers of their own, or what `export`
            refuses.
    """
    from audiolora.speech.ctc.adapter import load_adapted_ctc, read_ctc_info
    from audiolora.speech.ctc.heads import head_of
    from audiolora.speech.whisper.adapter import adapter_folder

    folders = {name: adapter_folder(run) for name, run in runs.items()}
    infos = {name: read_ctc_info(folder) for name, folder in folders.items()}
    (first, *others) = runs
    for name in others:
        _check_alike(folders[name], infos[name], first, infos[first])
    model: Any
    model, loaded, info = load_adapted_ctc(
        folders[first], base=None if base is None else str(base), adapter_name="run0", log=lambda line: None
    )
    if info.new_head:
        wrapped: Any = head_of(loaded.model)[1]
        wrapped.original_module.load_state_dict(wrapped.modules_to_save["run0"].state_dict())
    for i, name in enumerate(others, start=1):
        model.load_adapter(str(folders[name]), adapter_name=f"run{i}")
    ids = {f"run{i}": name for i, name in enumerate(runs)}
    own = {name: folder / _PROCESSOR for name, folder in folders.items()}
    how = ctc_settings_of(model, ids, own[first], own, drop_special=True)
    return export(model, out, adapters=ids, **how, **settings)


def _check_alike(folder: Path, info: Any, first: str, of_first: Any) -> None:
    if info.base_fingerprint != of_first.base_fingerprint:
        raise ValueError(
            f"{folder}: trained over {info.base_model} (fingerprint {info.base_fingerprint[:12]}), and {first} over "
            f"{of_first.base_model} ({of_first.base_fingerprint[:12]}); a bundle has one base: export them apart"
        )
    if (info.new_head, len(info.vocabulary)) != (of_first.new_head, len(of_first.vocabulary)):
        whose = {True: "of its own", False: "of its base"}
        layers = [f"{whose[one.new_head]}, {len(one.vocabulary)} outputs" for one in (info, of_first)]
        raise ValueError(
            f"{folder}: an output layer {layers[0]}, and {first}: one {layers[1]}; a bundle has one shape of it, so "
            "export them apart"
        )


def ctc_settings_of(
    model: nn.Module, ids: Mapping[str, str], base: Path, own: Mapping[str, Path], *, drop_special: bool = False
) -> dict[str, Any]:
    """For `export`: the processor, the task, and the tasks of adapters that have another alphabet.

    Args:
        model: with the adapters.
        ids: PEFT's name → id.
        base, own: from `processors`.
        drop_special: special tokens are left out of texts, as `speech.ctc.decode.GreedyDecoder` does; else they are
            written, as the tokenizer's ``batch_decode`` does.

    Raises:
        ValueError: no processor in a folder, or one of another model.
    """
    processor = _loaded(base)

    def task_of(one: Any) -> CtcSettings:
        return ctc_task(model, one, drop=_special(one.tokenizer) if drop_special else ())

    task = task_of(processor)
    tasks = {peft: task_of(_loaded(own[name])) for peft, name in ids.items() if name in own}
    return {"processor": processor, "task": task, "tasks": {peft: each for peft, each in tasks.items() if each != task}}


def _special(tokenizer: Any) -> list[str]:
    """The alphabet's tokens that are no text, ``<s>``, ``</s>``, ``<unk>``, without blank and delimiter."""
    roles = (tokenizer.pad_token, tokenizer._word_delimiter_token)
    return [token for token in tokenizer.all_special_tokens if token in tokenizer.encoder and token not in roles]


def _loaded(folder: Path) -> Any:
    from transformers import Wav2Vec2Processor

    try:
        return Wav2Vec2Processor.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{folder}: no Wav2Vec2Processor ({error}); name the folder that processor.save_pretrained wrote"
        ) from error
