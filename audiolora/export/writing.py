"""The folders of a bundle, from a network taken apart: graphs and adapters' tensors, each with its self-test."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from audiolora.export import executorch_bundle
from audiolora.export.bundle import Base, entries, read_base, write_folder
from audiolora.export.graph_files import Made
from audiolora.export.manifests import ADAPTER, SELFTEST, AdapterManifest, BaseManifest, GraphSpec
from audiolora.export.parts import Part
from audiolora.export.prepared import Prepared
from audiolora.export.signing import Key
from audiolora.export.slots import filled
from audiolora.export.tasks import Task, check_adapter_task
from audiolora.export.tensors import write_tensors


def write_base(
    bundle: Path, work: Prepared, says: Mapping[str, Any], more: Mapping[str, bytes], made: Made, key: Key | None
) -> Base:
    """A base's folder, and what was written, read back.

    Args:
        bundle: the bundle's folder, new.
        work: the network.
        says: what the manifest says besides.
        more: other files of the base.
        made: its graphs.
        key: private key to sign with.
    """
    files, test = {**more, **made.files}, dict[str, np.ndarray]()
    for part in work.parts:
        test |= {f"{part.name}.input.{name}": tensor.numpy() for name, tensor in part.inputs.items()}
        test |= _outputs(part, made.specs[part.name], work, work.merged)
    files[SELFTEST] = write_tensors(test)
    manifest = BaseManifest(files=entries(files), graphs=made.specs, **made.says, **says)
    write_folder(bundle / "base", manifest, files, key)
    return read_base(bundle, check_signature=False)


def write_adapter(folder: Path, work: Prepared, adapter: str, base: Base, task: Task | None, key: Key | None) -> None:
    """An adapter's folder; ``adapter`` is PEFT's name."""
    from audiolora.edge.runtime import adapter_file

    manifest = base.manifest
    if task is not None:
        check_adapter_task(manifest.task, task)
    tensors = filled(manifest.slots, work.folds[adapter])
    if manifest.target == "executorch":
        tensors = executorch_bundle.padded(tensors, manifest.slots)
    rank = max((len(value) for name, value in tensors.items() if name.endswith(".lora_A")), default=0)
    if rank > manifest.max_rank:
        raise ValueError(
            f"adapter {folder.name!r} has rank {rank}, and this base takes at most {manifest.max_rank}; export the "
            f"base with max_rank={rank}"
        )
    test: dict[str, np.ndarray] = {}
    for part in work.parts:
        test |= _outputs(part, manifest.graphs[part.name], work, adapter)
    files = {ADAPTER: write_tensors(tensors), SELFTEST: write_tensors(test)}
    if manifest.target == "executorch":
        files |= executorch_bundle.data_files(base, tensors)
    else:
        for name, graph in manifest.graphs.items():
            files[manifest.adapter_file(name)] = adapter_file({slot.name: tensors[slot.name] for slot in graph.slots})
    write_folder(folder, AdapterManifest(folder.name, base.sha256, rank, entries(files), task), files, key)


def _outputs(part: Part, spec: GraphSpec, work: Prepared, adapter: str | None) -> dict[str, np.ndarray]:
    wanted = work.reference(part, part.inputs, adapter)
    names = [value.name for value in spec.outputs] + [state.output for state in spec.states]
    return {f"{part.name}.output.{name}": y for name, y in zip(names, wanted, strict=True)}
