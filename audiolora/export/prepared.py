"""A network taken apart for export: the plain one, what each adapter does to it, and an example to check it on."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from audiolora.export.bundle import Base
from audiolora.export.checking import Reference
from audiolora.export.onnx import Dynamic
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
        inputs: the example.
        dynamic: its free sizes.
        merged: the adapter that is in the plain network's tensors, if one is.
        also: another example to check parity on.
    """

    plain: nn.Module
    reference: Reference
    folds: Mapping[str, Mapping[str, Fold]]
    targets: Sequence[Target]
    inputs: Mapping[str, torch.Tensor]
    dynamic: Dynamic
    merged: str | None = None
    also: Mapping[str, torch.Tensor] | None = None

    @classmethod
    def of(
        cls, network: nn.Module, example: Any, dynamic: Dynamic | None, *, merged: str | None, dora: bool
    ) -> Prepared:
        """For a new base, with slots for every adapter that the network has."""
        if any(parameter.is_meta for parameter in network.parameters()):
            raise ValueError("the network has tensors on meta: load its weights before the export")
        inputs = _named(network, example)
        twin = copied(network)
        folds = {name: fold(twin, name) for name in adapter_names(twin)}
        reference = Reference(twin)
        plain = plain_network(twin)
        if merged is not None:
            _merge(plain, targets(plain, [folds[merged]]), folds[merged])
        made = [] if merged is not None else targets(plain, folds.values(), dora=dora)
        return cls(plain, reference, folds, made, inputs, _free(inputs, dynamic), merged)

    @classmethod
    def over(cls, network: nn.Module, base: Base, adapter: str, example: Any) -> Prepared:
        """With the slots and the self-test of a base that was exported before."""
        if adapter not in adapter_names(network):
            raise ValueError(f"no adapter {adapter!r} in the network; it has {', '.join(adapter_names(network))}")
        stored = read_tensors(base.files["selftest.safetensors"], "base/selftest.safetensors")
        inputs = {spec.name: torch.from_numpy(stored[f"input.{spec.name}"].copy()) for spec in base.manifest.inputs}
        twin = copied(network)
        folds = {adapter: fold(twin, adapter)}
        reference = Reference(twin)
        dynamic = {
            spec.name: {i: size for i, size in enumerate(spec.shape) if isinstance(size, str)}
            for spec in base.manifest.inputs
        }
        also = None if example is None else _named(network, example)
        return cls(plain_network(twin), reference, folds, (), inputs, dynamic, also=also)

    def trials(self) -> list[dict[str, torch.Tensor]]:
        """The examples, and inputs of other sizes where those are free."""
        names = list(dict.fromkeys(name for axes in self.dynamic.values() for name in axes.values()))
        more = {name: i + 1 for i, name in enumerate(names)}
        grown = {}
        for name, tensor in self.inputs.items():
            for axis, size in self.dynamic.get(name, {}).items():
                tensor = torch.cat([tensor, tensor.narrow(axis, 0, min(more[size], tensor.shape[axis]))], axis)
            grown[name] = tensor.contiguous()
        return [dict(self.inputs), *([grown] if names else []), *([] if self.also is None else [dict(self.also)])]


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


def _named(network: nn.Module, example: Any) -> dict[str, torch.Tensor]:
    """The inputs by the names of forward's arguments, in their order."""
    names = forward_names(network)
    if isinstance(example, torch.Tensor):
        example = {names[0] if names else "x": example}
    if not isinstance(example, Mapping) or not example:
        raise ValueError("example must be an input of the network, or inputs by name: it is what parity is checked on")
    names = names or list(example)
    if list(example) != names[: len(example)]:
        raise ValueError(f"example must name forward's first arguments in order, {names}, got {list(example)}")
    return {name: tensor.detach().cpu().contiguous() for name, tensor in example.items()}


def _free(inputs: Mapping[str, torch.Tensor], dynamic: Dynamic | None) -> Dynamic:
    if dynamic is None:
        return {name: {0: "batch"} | ({2: "time"} if x.dim() == 3 else {}) for name, x in inputs.items()}
    wrong = [name for name, axes in dynamic.items() if name not in inputs or any(a >= inputs[name].dim() for a in axes)]
    if wrong:
        raise ValueError(
            f"dynamic names {', '.join(wrong)}, or an axis of it, that the inputs {list(inputs)} do not have"
        )
    return dynamic


def forward_names(network: nn.Module) -> list[str]:
    """The names of forward's arguments by position; adapters or not."""
    parameters = inspect.signature(inner_network(network).forward).parameters
    return [name for name, p in parameters.items() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
