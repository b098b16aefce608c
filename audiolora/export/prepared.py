"""A network taken apart for export: the plain one, what each adapter does to it, and an example to check it on."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from audiolora.export.bundle import Base
from audiolora.export.int8 import Coded, coded_weights, quantize_network, tie_again
from audiolora.export.manifests import SELFTEST
from audiolora.export.parts import Dynamic, Part, whole
from audiolora.export.reference import Reference
from audiolora.export.slots import (
    Fold,
    Target,
    adapter_names,
    copied,
    filled,
    fold,
    inner_network,
    plain_network,
    slots_of,
    targets,
)
from audiolora.export.tensors import read_tensors


@dataclass(frozen=True)
class Prepared:
    """A network taken apart for export.

    Args:
        plain: without adapters.
        reference: with them, run by torch.
        folds: by adapter, what it does to the plain network's tensors.
        targets: the tensors that have slots.
        parts: the graphs.
        merged: the adapter that is in the plain network's tensors, if one is.
        also: another example to check parity on, where there is one graph.
        original: the float network, where this one is quantised or is going to be.
        coded: the weights that are in int8.
    """

    plain: nn.Module
    reference: Reference
    folds: Mapping[str, Mapping[str, Fold]]
    targets: Sequence[Target]
    parts: Sequence[Part]
    merged: str | None = None
    also: Mapping[str, torch.Tensor] | None = None
    original: Reference | None = None
    coded: Sequence[Coded] = ()

    @classmethod
    def of(
        cls,
        network: nn.Module,
        parts: Sequence[Part],
        *,
        merged: str | None,
        dora: bool,
        quantize: str | None = None,
    ) -> Prepared:
        """For a new base, with slots for every adapter that the network has."""
        if any(parameter.is_meta for parameter in network.parameters()):
            raise ValueError("the network has tensors on meta: load its weights before the export")
        twin = copied(network)
        original = Reference(twin) if quantize else None
        tied = quantize_network(inner_network(twin)) if quantize == "int8" else []
        coded = coded_weights(twin) if quantize == "int8" else ()
        folds = {name: fold(twin, name) for name in adapter_names(twin)}
        reference = Reference(twin)
        plain = plain_network(twin)
        tie_again(tied)
        if merged is not None:
            _merge(plain, targets(plain, [folds[merged]]), folds[merged])
        made = [] if merged is not None else targets(plain, folds.values(), dora=dora)
        return cls(plain, reference, folds, made, parts, merged, original=original, coded=coded)

    @classmethod
    def over(
        cls,
        network: nn.Module,
        base: Base,
        adapter: str,
        parts: Sequence[Part] | None,
        example: Any,
        view: Callable[[nn.Module], nn.Module] = whole,
    ) -> Prepared:
        """With the slots and the self-test of a base that was exported before; ``view`` is that of its one graph."""
        if adapter not in adapter_names(network):
            raise ValueError(f"no adapter {adapter!r} in the network; it has {', '.join(adapter_names(network))}")
        twin = copied(network)
        if base.manifest.quantized == "int8":
            quantize_network(inner_network(twin))  # its graphs are there, so nothing need be tied again
        folds = {adapter: fold(twin, adapter)}
        reference = Reference(twin)
        also = None if example is None else named_inputs(network, example)
        views = {part.name: part.view for part in parts} if parts else {"base": view}
        if views.keys() != base.manifest.graphs.keys():
            raise ValueError(f"the base has the graphs {', '.join(base.manifest.graphs)}, got {', '.join(views)}")
        stored = [stored_part(base, name, view) for name, view in views.items()]
        return cls(plain_network(twin), reference, folds, (), stored, also=also)

    def trials(self, part: Part) -> list[dict[str, torch.Tensor]]:
        """The part's, and the example that was given besides."""
        if self.also is None:
            return part.trials()
        return [*part.trials(), dict(self.also) | part.first_states(self.also)]


def stored_part(base: Base, graph: str, view: Callable[[nn.Module], nn.Module]) -> Part:
    """A graph of a base with the self-test that is stored there as its example."""
    spec = base.manifest.graphs[graph]
    stored = read_tensors(base.files[SELFTEST], f"base/{SELFTEST}")
    taken = {value.name: value.shape for value in spec.inputs}
    taken |= {state.input: state.shape for state in spec.states}
    inputs = {name: torch.from_numpy(stored[f"{graph}.input.{name}"].copy()) for name in taken}
    dynamic = {
        name: {i: size for i, size in enumerate(shape) if isinstance(size, str)} for name, shape in taken.items()
    }
    states = {state.input: state.output for state in spec.states}
    return Part(inputs, dynamic, graph, view, states, (*(value.name for value in spec.outputs), *states.values()))


@torch.no_grad()
def _merge(plain: nn.Module, made: Sequence[Target], folds: Mapping[str, Fold]) -> None:
    slots = {name: torch.from_numpy(value.copy()) for name, value in filled(slots_of(made), folds).items()}
    tensors = dict(plain.named_parameters(remove_duplicate=False)) | dict(plain.named_buffers(remove_duplicate=False))
    for target in made:
        module = plain.get_submodule(target.name.rpartition(".")[0])
        value, last = target.applied(tensors[target.name], slots), target.name.rpartition(".")[2]
        if last in module._buffers:
            module._buffers[last] = value
        else:  # a parameter of its own: another module may share the base's
            module._parameters[last] = nn.Parameter(value, requires_grad=False)


def named_inputs(network: nn.Module, example: Any) -> dict[str, torch.Tensor]:
    """The inputs by the names of forward's arguments, in their order."""
    names = forward_names(network)
    if isinstance(example, torch.Tensor):
        example = {names[0] if names else "x": example}
    if not isinstance(example, Mapping) or not example:
        raise ValueError(
            "example must be an input of the network, or inputs by name, as torch's tensors: it is what parity is "
            f"checked on; got {type(example).__name__}"
        )
    for name, tensor in example.items():
        if not isinstance(tensor, torch.Tensor) or not tensor.isfinite().all():
            told = "values that are not finite" if isinstance(tensor, torch.Tensor) else type(tensor).__name__
            raise ValueError(f"example: {name} must be a tensor of finite values, got {told}")
    names = names or list(example)
    if list(example) != names[: len(example)]:
        raise ValueError(f"example must name forward's first arguments in order, {names}, got {list(example)}")
    return {name: tensor.detach().cpu().contiguous() for name, tensor in example.items()}


def one_part(network: nn.Module, example: Any, dynamic: Dynamic | None) -> Part:
    """A network as one graph; by default the batch is free, and the time of an input with three axes."""
    inputs = named_inputs(network, example)
    if dynamic is None:
        dynamic = {name: {0: "batch"} | ({2: "time"} if x.dim() == 3 else {}) for name, x in inputs.items()}
    return Part(inputs, dynamic)


def forward_names(network: nn.Module) -> list[str]:
    """The names of forward's arguments by position; adapters or not."""
    parameters = inspect.signature(inner_network(network).forward).parameters
    return [name for name, p in parameters.items() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
