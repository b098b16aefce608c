"""The plain network as an ONNX graph whose adapter is an input.

Forms: ``wsum`` runs the network's own operators on W' (one small product a weight and a call); ``fact`` adds the
low-rank path beside each convolution, y = conv(x, W) + B ∗ conv(x, A) (less work for inputs of a few steps);
``merged`` has one adapter in its weights and no slots. A weight that another formula than a convolution or a linear map
consumes takes the first form in either.

The slots are inputs with zeros as defaults, which ONNX Runtime's multi-LoRA overrides in a run. A runtime that cannot
leave an input out (browsers) takes the variant of `required`, where zeros are passed for "no adapter".
"""

from __future__ import annotations

import logging
import operator
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from audiolora.export.manifests import GraphSpec, StateSpec, TensorSpec
from audiolora.export.parts import Dynamic, Part
from audiolora.export.slots import Target, slots_of

_TRACED_RANK = 3


class WithSlots(nn.Module):
    """A part of the plain network; its forward takes the data's inputs and then a list of the slots' tensors.

    Args:
        net: the view.
        plain: the network that it is a view of.
        targets: the tensors that have slots; those whose module the view does not hold are left out.
        form: ``"wsum"``, ``"fact"``, or ``"merged"``.
    """

    def __init__(self, net: nn.Module, plain: nn.Module, targets: Sequence[Target], form: str) -> None:
        super().__init__()
        held = {id(module): path for path, module in net.named_modules()}
        self.paths: dict[str, str] = {}
        for target in targets:
            owner, _, last = target.name.rpartition(".")
            path = held.get(id(plain.get_submodule(owner)))
            if path is not None:
                self.paths[target.name] = f"{path}.{last}" if path else last
        self.net, self.form = net, form
        self.targets = tuple(target for target in targets if target.name in self.paths)
        self.slots = [slot for slot in slots_of(targets) if slot.name.rpartition(".")[0] in self.paths]
        self.names = [slot.name for slot in self.slots]
        self.beside: tuple[Target, ...] = ()

    def forward(self, *args: Any) -> Any:
        *inputs, values = args
        slots = dict(zip(self.names, values, strict=True))
        beside = {target.name for target in self.beside}
        replaced = {
            self.paths[target.name]: target.applied(self.tensor(target), slots)
            for target in self.targets
            if target.name not in beside
        }
        with LowRankBeside(self, slots):
            # Not tied: of two modules that share a tensor only the adapted one has an adapter.
            return torch.func.functional_call(self.net, replaced, tuple(inputs), tie_weights=False)

    def tensor(self, target: Target) -> torch.Tensor:
        """The base's tensor; an attribute, since torch.export puts its own in the parameters' places."""
        found: torch.Tensor = operator.attrgetter(self.paths[target.name])(self.net)
        return found

    def choose_beside(self, inputs: Sequence[torch.Tensor], slots: Sequence[torch.Tensor]) -> None:
        """For ``fact``: which weights a convolution or a linear map takes as they are, by running it once."""
        held = Counter(id(tensor) for _, tensor in self.net.named_parameters(remove_duplicate=False))
        self.beside = tuple(
            target
            for target in self.targets
            if target.low_rank and not target.delta and held[id(self.tensor(target))] == 1  # nobody else's
        )
        seen = LowRankBeside(self, dict(zip(self.names, slots, strict=True)))
        with seen, torch.no_grad():
            self.net(*inputs)
        self.beside = tuple(target for target in self.beside if target.name in seen.met)


class LowRankBeside(TorchFunctionMode):
    """Adds an adapter's low-rank path to each convolution and linear map that takes its weight."""

    def __init__(self, owner: WithSlots, slots: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        self.owner, self.slots = owner, slots
        self.met: set[str] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in LINEAR_MAPS or not self.owner.beside:
            return func(*args, **kwargs)
        call = dict(zip(LINEAR_MAPS[func], args, strict=False)) | kwargs
        target = next((t for t in self.owner.beside if self.owner.tensor(t) is call.get("weight")), None)
        if target is None:
            return func(*args, **kwargs)
        self.met.add(target.name)
        return _with_path(func, call, target, self.slots)


LINEAR_MAPS: dict[Any, tuple[str, ...]] = {
    torch.conv1d: ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
    torch.conv_transpose1d: ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation"),
    F.linear: ("input", "weight", "bias"),
}


def _with_path(func: Any, call: dict[str, Any], target: Target, slots: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """func(x, W, b, …) with the low-rank path: with groups each runs the same A, which they share."""
    bias, linear = call.pop("bias", None), func is F.linear
    A, B = slots[f"{target.name}.lora_A"], slots[f"{target.name}.lora_B"]
    if linear:
        y = func(**call) + F.linear(F.linear(call["input"], A), B)
    else:
        groups, kernel = call.get("groups", 1), A.view(-1, *target.kernel_shape[1:])
        kernel = kernel if target.transposed_groups is None else kernel.transpose(0, 1)
        # Not repeated once: a small step would pay for each operator that is left in the graph.
        z = func(**{**call, "weight": kernel.repeat(groups, 1, 1) if groups > 1 else kernel})
        y = func(**call) + F.conv1d(z, B.unsqueeze(2), groups=groups)
    if target.gain:
        gain = 1 + slots[f"{target.name}.gain"]
        y = y * (gain if linear else gain.unsqueeze(1))
    return y if bias is None else y + (bias if linear else bias.unsqueeze(1))


def graph(owner: WithSlots, part: Part) -> Any:
    """The ``onnx.ModelProto``, its slots without defaults.

    Args:
        owner: around the part's view of the plain network, in evaluation mode.
        part: its example (sizes of 1 that are free are traced at 2), which sizes are free, the outputs' names.

    Raises:
        ValueError: torch cannot export the network with these sizes free; its own words follow.
    """
    slots, inputs, dynamic = owner.slots, part.inputs, part.dynamic
    example = [_traced(tensor, dynamic.get(name, {})) for name, tensor in inputs.items()]
    values = [torch.ones([_TRACED_RANK if isinstance(d, str) else d for d in slot.shape]) for slot in slots]
    if owner.form == "fact":
        owner.choose_beside(example, values)
    free = torch.export.Dim.DYNAMIC
    shapes: list[Any] = [dict.fromkeys(dynamic.get(name, {}), free) for name in inputs]
    shapes.append([{i: free for i, d in enumerate(slot.shape) if isinstance(d, str)} for slot in slots])
    try:
        with _quiet():
            program = torch.onnx.export(
                owner,
                (*example, values),
                input_names=[*inputs, *(slot.name for slot in slots)],
                dynamic_shapes=(tuple(shapes),),
                dynamo=True,
                verbose=False,
            )
    except Exception as error:
        raise ValueError(
            f"torch cannot export {type(owner.net).__name__} with {_told(inputs, dynamic)}: {_reason(error)}; name the "
            "axes that are free with dynamic={'x': {0: 'batch'}}, or make the network exportable (torch.export)"
        ) from error
    assert program is not None  # it is where no file is named
    proto = program.model_proto
    _name_sizes(proto, inputs, dynamic, slots)
    _name_outputs(proto, part)
    strip(proto)
    return proto


def optional(proto: Any, slots: Sequence[TensorSpec]) -> bytes:
    """The graph with zeros of rank 1 as the slots' defaults: what ONNX Runtime's multi-LoRA asks for."""
    import numpy as np
    from onnx import ModelProto, numpy_helper

    made = ModelProto()
    made.CopyFrom(proto)
    for slot in slots:
        # Rank 0 would leave a convolution's output uninitialised.
        zeros = np.zeros([1 if isinstance(size, str) else size for size in slot.shape], np.float32)
        made.graph.initializer.append(numpy_helper.from_array(zeros, slot.name))
    data: bytes = made.SerializeToString(deterministic=True)
    return data


def required(proto: Any) -> bytes:
    """The graph whose slots must be given in each run; zeros are no adapter."""
    data: bytes = proto.SerializeToString(deterministic=True)
    return data


def strip(proto: Any) -> None:
    """Take out what an exporter tells about itself: stack traces with paths of this machine, names of classes."""
    del proto.metadata_props[:]
    proto.doc_string = ""
    graphs = [proto.graph]
    for graph in graphs:
        graph.doc_string = ""
        del graph.metadata_props[:]
        for part in (*graph.node, *graph.initializer, *graph.input, *graph.output, *graph.value_info):
            del part.metadata_props[:]
            part.doc_string = ""
        del graph.value_info[:]  # shapes that the runtime infers again
        for node in graph.node:
            for attribute in node.attribute:
                graphs.extend([attribute.g] if attribute.HasField("g") else [])
                graphs.extend(attribute.graphs)


def consumed(proto: Any) -> set[str]:
    """The names that its nodes take, or that it gives: an input that is not among them changes nothing."""
    names = {value.name for value in proto.graph.output}
    graphs = [proto.graph]
    for graph in graphs:
        for node in graph.node:
            names.update(node.input)
            for attribute in node.attribute:
                graphs.extend([attribute.g] if attribute.HasField("g") else [])
                graphs.extend(attribute.graphs)
    return names


def without_inputs(proto: Any, names: set[str]) -> None:
    """Take inputs out."""
    kept = [value for value in proto.graph.input if value.name not in names]
    del proto.graph.input[:]
    proto.graph.input.extend(kept)


def spec(proto: Any, part: Part, slots: Iterable[TensorSpec]) -> GraphSpec:
    """What the graph takes and gives, as the manifest has it; the slots that it has no input for are left out."""
    from onnx import helper

    def tensor(value: Any) -> TensorSpec:
        kind = value.type.tensor_type
        shape = tuple(d.dim_param or d.dim_value for d in kind.shape.dim)
        return TensorSpec(value.name, shape, helper.tensor_dtype_to_np_dtype(kind.elem_type).name)

    given = {value.name: tensor(value) for value in proto.graph.input}
    states = tuple(StateSpec(name, after, given[name].shape, given[name].dtype) for name, after in part.states.items())
    after = set(part.states.values())
    return GraphSpec(
        inputs=tuple(given[name] for name in part.inputs if name not in part.states),
        outputs=tuple(tensor(value) for value in proto.graph.output if value.name not in after),
        slots=tuple(slot for slot in slots if slot.name in given),
        states=states,
    )


def opset(proto: Any) -> int:
    """The version of ONNX's own operators."""
    return int(next(entry.version for entry in proto.opset_import if entry.domain == ""))


def _traced(tensor: torch.Tensor, axes: Mapping[int, str]) -> torch.Tensor:
    for axis in axes:
        if tensor.shape[axis] == 1:
            tensor = tensor.repeat_interleave(2, axis)  # torch takes a size of 1 for one that is always 1
    return tensor


def _name_sizes(proto: Any, inputs: Mapping[str, Any], dynamic: Dynamic, slots: Sequence[TensorSpec]) -> None:
    """Free sizes by our names instead of torch's symbols, in outputs too."""
    names: dict[str, str] = {}
    wanted: dict[str, Mapping[int, str]] = {name: dynamic.get(name, {}) for name in inputs}
    wanted |= {slot.name: {i: d for i, d in enumerate(slot.shape) if isinstance(d, str)} for slot in slots}
    for value in proto.graph.input:
        for axis, name in wanted[value.name].items():
            size = value.type.tensor_type.shape.dim[axis]
            names.setdefault(size.dim_param, name)
    for value in (*proto.graph.input, *proto.graph.output):
        for size in value.type.tensor_type.shape.dim:
            if size.dim_param:
                size.dim_param = re.sub(r"\w+", lambda m: names.get(m.group(), m.group()), size.dim_param)


def _name_outputs(proto: Any, part: Part) -> None:
    """The part's names; an inner value that has one of them gives way."""
    outputs = [value.name for value in proto.graph.output]
    wanted = part.named(outputs)
    taken = {value.name for value in (*proto.graph.input, *proto.graph.initializer)}
    if len(set(outputs)) < len(outputs) or taken & {*wanted, *outputs}:
        raise ValueError(
            f"{part.name}: an output is an input or another output as it is ({', '.join(outputs)} for "
            f"{', '.join(wanted)}); leave it out, or give the output another name"
        )
    names = {name: f"{name}_inner" for node in proto.graph.node for name in node.output if name in wanted}
    names |= dict(zip(outputs, wanted, strict=True))
    for value in proto.graph.output:
        value.name = names[value.name]
    for node in proto.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]


def _told(inputs: Mapping[str, torch.Tensor], dynamic: Dynamic) -> str:
    return ", ".join(
        f"{name} ({', '.join(dynamic.get(name, {}).get(i, str(d)) for i, d in enumerate(tensor.shape))})"
        for name, tensor in inputs.items()
    )


def _reason(error: Exception) -> str:
    """The innermost cause, in a line or two: torch wraps it in pages."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    return " ".join(str(cause).split())[:400]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's talk about what is not installed, and its own deprecations."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
