"""What a bundle for ExecuTorch holds: programs, data files, and slots whose ranks are fixed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from audiolora.export.bundle import Base
from audiolora.export.executorch import VERSION, Program, program
from audiolora.export.executorch_data import DataLayout, data_file, layout_file
from audiolora.export.manifests import GraphSpec, TensorSpec
from audiolora.export.parts import Part
from audiolora.export.prepared import Prepared
from audiolora.export.slots import Fold, Target

RUNTIME = VERSION


def checked_form(form: str | None, web: bool) -> str:
    """The form of a bundle for ExecuTorch.

    Raises:
        ValueError: one that it does not have.
    """
    if form not in (None, "fact", "merged") or web:
        asked = "web=True" if web else f"form={form!r}"
        raise ValueError(
            f"target 'executorch' has the forms 'fact' (XNNPACK takes no weight that a run computes) and 'merged', and "
            f"no variant for browsers, got {asked}; leave it out, or export with target='onnx'"
        )
    return form or "fact"


def batch_alone(part: Part) -> Part:
    """The part with the batch as its one free size: XNNPACK takes no second one."""
    return replace(part, dynamic={name: {0: "batch"} for name in part.inputs})


def programs(work: Prepared, max_rank: int | None, largest: Mapping[str, int]) -> dict[str, Program]:
    """The graphs of a base.

    Args:
        work: the network taken apart.
        max_rank: the rank of every slot; None: of each target, the largest that an adapter has there.
        largest: of the free sizes, by name.

    Raises:
        ImportError: ExecuTorch is missing, or another version.
        ValueError: a network that it does not take.
    """
    names = {name for part in work.parts for axes in part.dynamic.values() for name in axes.values()}
    if unknown := sorted(largest.keys() - names):
        raise ValueError(f"largest names {', '.join(unknown)}, and the free sizes are {', '.join(sorted(names))}")
    slots = fixed_slots(work.targets, work.folds.values(), max_rank)
    made = {part.name: program(work.plain, work.targets, slots, part, largest) for part in work.parts}
    taken = {slot.name for one in made.values() for slot in one.spec.slots}
    if idle := [slot.name for slot in slots if slot.name not in taken]:
        raise ValueError(f"{', '.join(idle)}: no graph uses what it adapts; leave it out of the adapter")
    return made


def program_files(made: Mapping[str, Program]) -> dict[str, bytes]:
    """The files of a base's programs, by name."""
    files: dict[str, bytes] = {}
    for name, one in made.items():
        files |= {f"{name}.pte": one.program, layout_file(name): one.layout.to_json()}
        if one.data:
            files[data_file(name)] = one.data
    return files


def rank_of(specs: Mapping[str, GraphSpec]) -> int:
    """The largest rank that the slots have; 1 where there is none."""
    ranks = [slot.shape[0] for spec in specs.values() for slot in spec.slots if slot.name.endswith(".lora_A")]
    return max((int(rank) for rank in ranks), default=1)


def data_files(base: Base, tensors: Mapping[str, np.ndarray]) -> dict[str, bytes]:
    """An adapter's data file for each graph, under the keys of the base's programs."""
    files = {}
    for name, graph in base.manifest.graphs.items():
        own, file = {slot.name: tensors[slot.name] for slot in graph.slots}, data_file(name)
        layout = DataLayout.from_json(base.files[layout_file(name)], layout_file(name))
        files[file] = layout.written(base.files[file], own, file) if own else b""
    return files


def fixed_slots(
    targets: Sequence[Target], folds: Iterable[Mapping[str, Fold]], max_rank: int | None
) -> list[TensorSpec]:
    """The slots with ranks that are fixed, for a program's constants have one size.

    Args:
        targets: the tensors that have slots.
        folds: of the adapters that are known.
        max_rank: of every target; None: the largest that an adapter has there.
    """
    known = list(folds)
    made: list[TensorSpec] = []
    for target in targets:
        factors = [one[target.name].A for one in known if target.name in one]
        rank = max((len(A) for A in factors if A is not None), default=1) if max_rank is None else max_rank
        for slot in target.slots("r"):
            made.append(TensorSpec(slot.name, tuple(rank if d == "r" else d for d in slot.shape), slot.dtype))
    return made


def padded(tensors: Mapping[str, np.ndarray], slots: Iterable[TensorSpec]) -> dict[str, np.ndarray]:
    """An adapter's tensors with zeros up to the slots' ranks.

    Raises:
        ValueError: an adapter of a larger rank.
    """
    made = {}
    for slot in slots:
        tensor = tensors[slot.name]
        missing = [int(size) - have for size, have in zip(slot.shape, tensor.shape, strict=True)]
        if min(missing, default=0) < 0:
            raise ValueError(
                f"{slot.name}: {tensor.shape}, and the program takes {slot.shape} at most; export the base again with "
                "a larger max_rank"
            )
        made[slot.name] = np.pad(tensor, [(0, size) for size in missing])
    return made
