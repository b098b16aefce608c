"""The graphs of a base for either runtime: their files, and what the manifest says of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from audiolora.export import executorch_bundle
from audiolora.export import onnx as graphs
from audiolora.export.manifests import GraphSpec
from audiolora.export.prepared import Prepared
from audiolora.export.quantizing import Quantization
from audiolora.export.slots import slots_of

# ONNX Runtime's multi-LoRA came with 1.20.
RUNTIME = "1.20.0"
_MAX_RANK = 64


@dataclass(frozen=True)
class Made:
    """The graphs of a base: their files, what they take and give, and what the manifest says of their runtime."""

    files: Mapping[str, bytes]
    specs: Mapping[str, GraphSpec]
    says: Mapping[str, Any]
    portable: tuple[str, ...] = ()


def onnx_graphs(work: Prepared, form: str, max_rank: int | None, web: bool, how: Quantization) -> Made:
    """For ONNX Runtime."""
    protos, specs = _graphs(work, form)
    protos, tolerance = how.applied(work, protos, specs, RUNTIME)
    files = {f"{name}.onnx": graphs.optional(proto, specs[name].slots) for name, proto in protos.items()}
    if web:
        files |= {f"{name}.web.onnx": graphs.required(proto) for name, proto in protos.items()}
    says = {"opset": max(map(graphs.opset, protos.values())), "runtime": RUNTIME}
    says |= {"max_rank": _MAX_RANK if max_rank is None else max_rank, "quantized": how.kind, "tolerance": tolerance}
    return Made(files, specs, says)


def executorch_graphs(work: Prepared, max_rank: int | None, largest: Mapping[str, int]) -> Made:
    """For ExecuTorch."""
    made = executorch_bundle.programs(work, max_rank, largest)
    specs = {name: one.spec for name, one in made.items()}
    says = {"opset": None, "runtime": executorch_bundle.RUNTIME, "max_rank": executorch_bundle.rank_of(specs)}
    portable = sorted({operator for one in made.values() for operator in one.portable})
    return Made(executorch_bundle.program_files(made), specs, says, tuple(portable))


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
