"""The folders of a bundle, from a network taken apart: graphs and adapters' tensors, each with its self-test."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from audiolora.export import onnx as graphs
from audiolora.export.bundle import entries, write_folder
from audiolora.export.manifests import ADAPTER, SELFTEST, AdapterManifest, BaseManifest, GraphSpec
from audiolora.export.parts import Part
from audiolora.export.prepared import Prepared
from audiolora.export.quantizing import Quantization
from audiolora.export.signing import Key
from audiolora.export.slots import filled, slots_of
from audiolora.export.tasks import Task, check_adapter_task
from audiolora.export.tensors import write_tensors

# ONNX Runtime's multi-LoRA came with 1.20.
RUNTIME = "1.20.0"


def write_base(
    folder: Path,
    work: Prepared,
    says: Mapping[str, Any],
    more: Mapping[str, bytes],
    how: Quantization,
    *,
    web: bool,
    key: Key | None,
) -> tuple[BaseManifest, str]:
    """A base's folder.

    Args:
        folder: the bundle's, new.
        work: the network.
        says: what the manifest says besides.
        more: other files of the base.
        how: whether it is quantised.
        web: also graphs whose slots must be given.
        key: private key to sign with.

    Returns:
        The manifest and its sha256.
    """
    protos, specs = _graphs(work, says["form"])
    protos, tolerance = how.applied(work, protos, specs, RUNTIME)
    files = dict(more)
    test: dict[str, np.ndarray] = {}
    for part in work.parts:
        proto, spec = protos[part.name], specs[part.name]
        files[f"{part.name}.onnx"] = graphs.optional(proto, spec.slots)
        if web:
            files[f"{part.name}.web.onnx"] = graphs.required(proto)
        test |= {f"{part.name}.input.{name}": tensor.numpy() for name, tensor in part.inputs.items()}
        test |= _outputs(part, spec, work, work.merged)
    files[SELFTEST] = write_tensors(test)
    manifest = BaseManifest(
        files=entries(files),
        target="onnx",
        opset=max(map(graphs.opset, protos.values())),
        runtime=RUNTIME,
        graphs=specs,
        quantized=how.kind,
        tolerance=tolerance,
        **says,
    )
    return manifest, write_folder(folder / "base", manifest, files, key)


def _graphs(work: Prepared, form: str) -> tuple[dict[str, Any], dict[str, GraphSpec]]:
    """Each part's graph, with the slots that it uses; one that no graph uses stays in the first that holds it."""
    protos, specs, idle = {}, {}, {}
    for part in work.parts:
        owner = graphs.WithSlots(part.made(work.plain), work.plain, work.targets, form).eval()
        protos[part.name] = proto = graphs.graph(owner, part)
        idle[part.name] = {slot.name for slot in owner.slots} - graphs.consumed(proto)
    needed = {slot for name, proto in protos.items() for slot in graphs.consumed(proto) - idle[name]}
    for part in work.parts:
        surplus = idle[part.name] & needed
        graphs.without_inputs(protos[part.name], surplus)
        needed |= idle[part.name]
        specs[part.name] = graphs.spec(protos[part.name], part, slots_of(work.targets))
    return protos, specs


def write_adapter(
    folder: Path,
    work: Prepared,
    adapter: str,
    base: str,
    manifest: BaseManifest,
    task: Task | None,
    key: Key | None,
) -> None:
    """An adapter's folder, for the base of this hash and manifest; ``adapter`` is PEFT's name."""
    from audiolora.edge.runtime import adapter_file

    if task is not None:
        check_adapter_task(manifest.task, task)
    tensors = filled(manifest.slots, work.folds[adapter])
    test: dict[str, np.ndarray] = {}
    for part in work.parts:
        test |= _outputs(part, manifest.graphs[part.name], work, adapter)
    files = {ADAPTER: write_tensors(tensors), SELFTEST: write_tensors(test)}
    for name, graph in manifest.graphs.items():
        files[manifest.adapter_file(name)] = adapter_file({slot.name: tensors[slot.name] for slot in graph.slots})
    rank = max((len(value) for name, value in tensors.items() if name.endswith(".lora_A")), default=0)
    write_folder(folder, AdapterManifest(folder.name, base, rank, entries(files), task), files, key)


def _outputs(part: Part, spec: GraphSpec, work: Prepared, adapter: str | None) -> dict[str, np.ndarray]:
    wanted = work.reference(part, part.inputs, adapter)
    names = [value.name for value in spec.outputs] + [state.output for state in spec.states]
    return {f"{part.name}.output.{name}": y for name, y in zip(names, wanted, strict=True)}
