"""A fleet on disk: one safetensors file of stacked tensors and an index, or one device as an ordinary PEFT adapter."""

from __future__ import annotations

import copy
import json
import secrets
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig
from safetensors import safe_open
from safetensors.torch import save_file

from audiolora.files import replace_folder
from audiolora.fleet.layout import Layout
from audiolora.integration import enabled

_TENSORS, _INDEX, _CONFIG = "fleet.safetensors", "fleet.json", "adapter_config.json"
_VERSION = 1


@dataclass(frozen=True)
class Index:
    """``fleet.json``, the devices in the order of the rows and the seed of the start; and PEFT's config beside it."""

    ids: list[str]
    config: LoraConfig
    seed: int


def save(layout: Layout, ids: Sequence[str], tensors: Mapping[str, torch.Tensor], seed: int, folder: Path) -> None:
    """`Fleet.save`."""
    shapes = {key: list(value.shape) for key, value in tensors.items()}
    index = {"version": _VERSION, "ids": list(ids), "seed": seed, "tensors": shapes}
    stacked = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    text = json.dumps(index, indent=1, ensure_ascii=False)
    write_folder(folder, {_TENSORS: stacked, _INDEX: text, _CONFIG: layout.config})


def read_index(folder: Path) -> Index:
    """The index of a saved fleet.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is of a version that this audiolora does not know.
    """
    path = folder / _INDEX
    if not path.exists():
        raise FileNotFoundError(f"{folder} holds no fleet: {_INDEX} is missing; Fleet.save writes it")
    found = json.loads(path.read_text(encoding="utf-8"))
    if found.get("version") != _VERSION:
        raise ValueError(f"{path}: version {found.get('version')!r}, and this audiolora reads {_VERSION}; update it")
    with enabled():  # the config may be of the type that plain PEFT refuses
        config = PeftConfig.from_pretrained(str(folder))
    config.inference_mode = False
    return Index(found["ids"], config, found["seed"])


def read_values(folder: Path, index: Index, layout: Layout, ids: Sequence[str]) -> torch.Tensor:
    """The rows (n, P) of these devices.

    Raises:
        ValueError: devices that are not in the file, or tensors that do not fit the network, each named.
    """
    number = {id: row for row, id in enumerate(index.ids)}
    unknown = [id for id in ids if id not in number]
    if unknown:
        raise ValueError(f"not in {folder / _TENSORS}: {', '.join(unknown[:20])}")
    wanted = {slot.key: (len(index.ids), *slot.shape) for slot in layout.slots}
    rows = [number[id] for id in ids]
    with safe_open(folder / _TENSORS, framework="pt") as file:
        found = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}
        wrong = [f"{key}: missing in the file" for key in wanted.keys() - found.keys()]
        wrong += [f"{key}: not in this network with this config" for key in found.keys() - wanted.keys()]
        both = wanted.keys() & found.keys()
        wrong += [f"{key}: {found[key]} in the file, {wanted[key]} here" for key in both if found[key] != wanted[key]]
        if wrong:
            raise ValueError(f"{folder / _TENSORS} does not fit this network:\n  " + "\n  ".join(sorted(wrong)))
        parts = [_read_rows(file.get_slice(key), rows).flatten(1) for key in wanted]
    return torch.cat(parts, 1)


def _read_rows(part: Any, rows: list[int]) -> torch.Tensor:
    if rows == list(range(part.get_shape()[0])):
        return part[:]
    return torch.cat([part[row : row + 1] for row in rows]) if rows else part[0:0]


def save_adapter(config: LoraConfig, tensors: Mapping[str, torch.Tensor], folder: Path) -> None:
    """`Fleet.save_adapter`."""
    stored = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    write_folder(folder, {"adapter_model.safetensors": stored, _CONFIG: config})


def write_folder(folder: Path, files: Mapping[str, Any]) -> None:
    """Write a folder whole or not at all: texts, tensors (safetensors) and PEFT's configs (which name their own file).

    Raises:
        OSError: it could not be written; what was there before stays.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.{secrets.token_hex(6)}.partial")
    partial.mkdir()
    try:
        for name, content in files.items():
            if isinstance(content, str):
                (partial / name).write_text(content, encoding="utf-8")
            elif isinstance(content, LoraConfig):
                copied = copy.deepcopy(content)
                copied.inference_mode = True  # as in every file of PEFT's
                copied.save_pretrained(str(partial))
            else:
                save_file(content, partial / name, metadata={"format": "pt"})
        replace_folder(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
