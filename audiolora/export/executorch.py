"""The plain network as an ExecuTorch program for XNNPACK, whose adapter is a data file.

The slots are external constants: the program holds their keys alone, and takes their values from the ``.ptd`` file that
comes with it. ExecuTorch documents neither the keys (XNNPACK's are the hash of a constant's bytes at export) nor how
XNNPACK arranges a constant's bytes. So a program is exported with numbers in the slots that occur nowhere else, each
once; the data file that comes with it then shows under which key and in which order every value of every slot is
looked up. A value that is not found is folded into the program, which is then refused. What was found holds for one
version of ExecuTorch, and no other loads the program.

Sizes: memory is planned for the largest, and XNNPACK's reshape takes one free size, no more.
"""

from __future__ import annotations

import logging
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from audiolora.export.executorch_data import DataLayout, Piece, strided
from audiolora.export.executorch_network import WithConstants
from audiolora.export.manifests import GraphSpec, StateSpec, TensorSpec
from audiolora.export.parts import Part
from audiolora.export.slots import Target

VERSION = "1.5.1"
"""Of ExecuTorch: what the programs are written with, and what runs them."""

LARGEST: Mapping[str, int] = {"batch": 64}
LARGEST_OTHER = 4096
"""The largest value of a free size, by its name."""

_TAG = "slots"
# Below it torch assumes nothing of a size: it traces at 2 and more, and 1 runs as well.
_TRACED_FROM = 2
_ASKED = 16
# Whole numbers below it are exact in float32; none of a network's own constants is likely to be one.
_FIRST = 2**23


@dataclass(frozen=True)
class Program:
    """One graph: the program, its data file with zeros, and where a slot's values go in it.

    Args:
        program: the ``.pte`` file.
        data: the ``.ptd`` file; empty if there are no slots.
        layout: of the data file.
        spec: what it takes and gives.
        portable: operators that XNNPACK did not take and that portable kernels run.
    """

    program: bytes
    data: bytes
    layout: DataLayout
    spec: GraphSpec
    portable: tuple[str, ...]


def program(
    plain: nn.Module, targets: Sequence[Target], slots: Sequence[TensorSpec], part: Part, largest: Mapping[str, int]
) -> Program:
    """One graph of a bundle.

    Args:
        plain: the network without adapters.
        targets: the tensors that have slots.
        slots: theirs, all sizes fixed.
        part: the graph's view, example and free sizes.
        largest: of the free sizes, by name; `LARGEST` for those it does not name.

    Raises:
        ImportError: ExecuTorch is not installed, or another version is.
        ValueError: a network that torch.export, ExecuTorch or XNNPACK does not take; why, and what to do instead.
    """
    check_version()
    limits = _limits(part, largest)
    numbered = _numbered(slots)
    owner = WithConstants(part.made(plain), plain, targets, numbered, tuple(part.inputs.values())).eval()
    example = tuple(_grown(tensor, part.dynamic.get(name, {}), limits) for name, tensor in part.inputs.items())
    try:
        with _quiet():
            exported, lowered = _lowered(owner, example, _free(part, limits))
    except Exception as error:
        raise ValueError(
            f"ExecuTorch cannot take {part.name} with {_told(part)}: {' '.join(str(error).split())[:400]}; XNNPACK "
            "takes one free size: name it with dynamic={'x': {0: 'batch'}}, or none with {}, or use target='onnx'"
        ) from error
    _check_free(lowered, part)
    portable = _portable(lowered)
    with _quiet():
        made = _serialised(lowered)
    held = [slot for slot in slots if slot.name in owner.places]
    data = bytes(made._tensor_data[_TAG]) if held else b""
    pieces = _pieces(data, numbered, held) if held else ()
    layout = DataLayout(_sizes(exported, part, limits), pieces)
    template = (
        layout.written(data, {s.name: np.zeros(tuple(map(int, s.shape)), np.float32) for s in held}) if held else b""
    )
    return Program(bytes(made.buffer), template, layout, _spec(exported, part, held), portable)


def _limits(part: Part, largest: Mapping[str, int]) -> dict[str, int]:
    limits = {}
    for name, axes in part.dynamic.items():
        for axis, size in axes.items():
            limits[size] = largest.get(size, LARGEST.get(size, LARGEST_OTHER))
            # torch asks of a convolution whether its batch is below 16, and a size that is 16 to 16 is a fixed one.
            limits[size] += limits[size] == _ASKED
            if limits[size] <= (has := part.inputs[name].shape[axis]):
                raise ValueError(
                    f"largest[{size!r}] must be above the example's {has}, for parity is checked on a larger one, too; "
                    f"got {limits[size]}; give a smaller example, or make the size fixed with dynamic={{}}"
                )
    return limits


def check_version() -> None:
    """Nothing if the ExecuTorch that is installed is the one that programs are written with.

    Raises:
        ImportError: it is missing, or another version.
    """
    from importlib import metadata

    try:
        found = metadata.version("executorch")
    except metadata.PackageNotFoundError:
        raise ImportError('target "executorch" needs ExecuTorch; pip install "audiolora[executorch]"') from None
    if found != VERSION:
        raise ImportError(
            f"ExecuTorch {found} is installed, and programs are written with {VERSION} alone: how a program finds its "
            f'data may differ; pip install "executorch=={VERSION}"'
        )


def _numbered(slots: Sequence[TensorSpec]) -> dict[str, torch.Tensor]:
    """Each value of each slot its own number."""
    values, first = {}, _FIRST
    for slot in slots:
        shape = tuple(map(int, slot.shape))
        count = math.prod(shape)
        values[slot.name] = -torch.arange(first, first + count, dtype=torch.float64).float().view(shape)
        first += count
    if first > 2 * _FIRST:
        raise ValueError(f"the adapters' slots have {first - _FIRST:,} values, and {_FIRST:,} can be told apart")
    return values


def _lowered(owner: WithConstants, example: tuple[torch.Tensor, ...], free: Any) -> tuple[Any, Any]:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower
    from executorch.exir.passes.external_constants_pass import delegate_external_constants_pass_unlifted

    places = {f"constants.{place}" for place in owner.places.values()}
    with torch.no_grad():
        module = torch.export.export(owner, example, dynamic_shapes=(free,)).module()
        delegate_external_constants_pass_unlifted(module, lambda node: _TAG if str(node.target) in places else None)
        exported = torch.export.export(module, example, dynamic_shapes=free)
        return exported, to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()])


def _serialised(lowered: Any) -> Any:
    from executorch.exir import ExecutorchBackendConfig

    # A constant that no operator packs is found by its name; those are ours to name.
    is_slot = re.compile(r"(b_)?constants_slot\d+").fullmatch
    return lowered.to_executorch(
        ExecutorchBackendConfig(external_constants=lambda node: _TAG if is_slot(node.name) else None)
    )


def _pieces(data: bytes, numbered: Mapping[str, torch.Tensor], slots: Sequence[TensorSpec]) -> tuple[Piece, ...]:
    """Where the numbers went.

    Raises:
        ValueError: one that the data file does not have.
    """
    from executorch.exir._serialize._cord import Cord
    from executorch.extension.flat_tensor.serialize.serialize import FlatTensorSerializer

    payload = FlatTensorSerializer().deserialize(Cord(data))
    firsts = {slot.name: -int(numbered[slot.name].flatten()[0]) for slot in slots}
    missing = {slot.name: set(range(numbered[slot.name].numel())) for slot in slots}
    pieces = []
    for key, entry in payload.named_data.items():
        buffer = bytes(payload.buffers[entry.buffer_index])
        numbers = -np.frombuffer(buffer, "<f4").astype(np.int64)
        name = max((name for name in firsts if firsts[name] <= numbers[0]), key=lambda name: firsts[name])
        view = strided(numbers - firsts[name])
        if view is None:
            raise ValueError(f"{name}: XNNPACK arranges it in a way that is no view of it; use target='onnx'")
        pieces.append(Piece(key, name, data.index(buffer), *view))
        missing[name] -= set((numbers - firsts[name]).tolist())
    if folded := [name for name, left in missing.items() if left]:
        raise ValueError(f"{', '.join(folded)}: folded into the program, so that no adapter could change it")
    return tuple(sorted(pieces, key=lambda piece: piece.offset))


def _check_free(lowered: Any, part: Part) -> None:
    """Nothing if the sizes that are to be free still are: some of ExecuTorch's passes fix them without a word.

    Raises:
        ValueError: they are not.
    """
    program = lowered.exported_program()
    nodes = {node.name: node for node in program.graph.nodes}
    for name, node in zip(part.inputs, program.graph_signature.user_inputs, strict=True):
        shape = nodes[node].meta["val"].shape
        if fixed := [size for axis, size in part.dynamic.get(name, {}).items() if isinstance(shape[axis], int)]:
            raise ValueError(
                f"{part.name}: an operator of this network makes ExecuTorch fix {', '.join(fixed)} of {name} at that "
                "of the example; make it fixed with dynamic={}, or use target='onnx'"
            )


def _portable(lowered: Any) -> tuple[str, ...]:
    """The operators beside the delegate's.

    Raises:
        ValueError: a convolution or a linear map among them, which is slower by orders of magnitude there.
    """
    nodes = [node for node in lowered.exported_program().graph.nodes if node.op == "call_function"]
    names = {getattr(node.target, "__name__", str(node.target)) for node in nodes}
    outside = sorted(name for name in names if name not in _PLUMBING)
    if slow := [name for name in outside if re.search(r"convolution|linear|addmm|\bmm\b|bmm", name)]:
        raise ValueError(f"XNNPACK does not take {', '.join(slow)} as this network has it; use target='onnx'")
    return tuple(outside)


_PLUMBING = ("executorch_call_delegate", "getitem", "sym_size.int", "mul", "add", "sub")


def _spec(exported: Any, part: Part, slots: Sequence[TensorSpec]) -> GraphSpec:
    nodes = {node.name: node for node in exported.graph.nodes}
    values = [nodes[name].meta["val"] for name in exported.graph_signature.user_outputs]
    inputs = [nodes[name].meta["val"] for name in exported.graph_signature.user_inputs]
    symbols = _symbols(exported, part)

    def tensor(name: str, value: Any) -> TensorSpec:
        sizes = [re.sub(r"\w+", lambda m: symbols.get(m.group(), m.group()), str(d)) for d in value.shape]
        return TensorSpec(name, tuple(int(d) if d.isdigit() else d for d in sizes), str(value.dtype).split(".")[1])

    given = {name: tensor(name, value) for name, value in zip(part.inputs, inputs, strict=True)}
    after = set(part.states.values())
    outputs = [tensor(*pair) for pair in zip(part.named(values), values, strict=True)]
    return GraphSpec(
        inputs=tuple(spec for name, spec in given.items() if name not in part.states),
        outputs=tuple(spec for spec in outputs if spec.name not in after),
        slots=tuple(slots),
        states=tuple(StateSpec(i, o, given[i].shape, given[i].dtype) for i, o in part.states.items()),
    )


def _free(part: Part, limits: Mapping[str, int]) -> tuple[dict[int, Any], ...]:
    free = {name: torch.export.Dim.DYNAMIC(max=limit) for name, limit in limits.items()}
    return tuple({axis: free[size] for axis, size in part.dynamic.get(name, {}).items()} for name in part.inputs)


def _sizes(exported: Any, part: Part, limits: Mapping[str, int]) -> dict[str, tuple[int, int]]:
    """The smallest of a free size that torch found, say a receptive field, and the largest that is planned for."""
    ranges = {str(symbol): int(found.lower) for symbol, found in exported.range_constraints.items()}
    lows = dict.fromkeys(limits, 1)
    for symbol, name in _symbols(exported, part).items():
        low = ranges.get(symbol, 1)
        lows[name] = max(lows[name], low if low > _TRACED_FROM else 1)
    return {name: (lows[name], limit) for name, limit in limits.items()}


def _symbols(exported: Any, part: Part) -> dict[str, str]:
    """Our names of torch's."""
    nodes = {node.name: node for node in exported.graph.nodes}
    shapes = [nodes[name].meta["val"].shape for name in exported.graph_signature.user_inputs]
    return {
        str(shape[axis]): size
        for name, shape in zip(part.inputs, shapes, strict=True)
        for axis, size in part.dynamic.get(name, {}).items()
    }


def _grown(tensor: torch.Tensor, axes: Mapping[int, str], limits: Mapping[str, int]) -> torch.Tensor:
    """Repeated up to the largest sizes: a choice that torch makes by the example's sizes bounds the program's."""
    for axis, size in axes.items():
        tensor = tensor.index_select(axis, torch.arange(limits[size]) % tensor.shape[axis])
    return tensor


def _told(part: Part) -> str:
    return ", ".join(
        f"{name} ({', '.join(part.dynamic.get(name, {}).get(i, str(d)) for i, d in enumerate(tensor.shape))})"
        for name, tensor in part.inputs.items()
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter tells about its own deprecations."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
