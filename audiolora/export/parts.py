"""What a bundle's graphs compute: a part of a network each, as a module around the whole of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

Dynamic = Mapping[str, Mapping[int, str]]
"""Input → axis → the name of its free size."""


def whole(network: nn.Module) -> nn.Module:
    """The view of a bundle with one graph: the network itself."""
    return network


@dataclass(frozen=True)
class Part:
    """One graph of a bundle.

    Args:
        inputs: an example of each input, by name, in the order of the view's arguments; states among them, with a past:
            an example is what parity is checked on.
        dynamic: the sizes that are free.
        name: of the graph and of its file.
        view: from the network (adapters in it or not) to a module that holds it, or modules of it, and whose forward
            computes this graph's outputs: a tensor or a tuple of tensors.
        states: input → output, by name: what the graph remembers.
        outputs: their names, states among them; None for ``y``, or ``y0``, ``y1``, …
        more: further inputs to check parity on, of sizes that the example does not show; they are not stored.
    """

    inputs: Mapping[str, torch.Tensor]
    dynamic: Dynamic
    name: str = "base"
    view: Callable[[nn.Module], nn.Module] = whole
    states: Mapping[str, str] = field(default_factory=dict)
    outputs: tuple[str, ...] | None = None
    more: tuple[Mapping[str, torch.Tensor], ...] = ()

    def __post_init__(self) -> None:
        for what, names, there in (
            ("dynamic", self.dynamic, self.inputs),
            ("states", self.states, self.inputs),
            ("states", self.states.values(), self.outputs or ()),
        ):
            if unknown := [name for name in names if name not in there]:
                raise ValueError(
                    f"{self.name}: {what} names {', '.join(unknown)}, and there is {', '.join(there) or 'none'}"
                )
        wrong = [name for name, axes in self.dynamic.items() if any(a >= self.inputs[name].dim() for a in axes)]
        if wrong:
            raise ValueError(f"{self.name}: dynamic names an axis of {', '.join(wrong)} that it does not have")

    def made(self, network: nn.Module) -> nn.Module:
        """The view of a network, in evaluation mode."""
        return self.view(network).eval()

    def named(self, outputs: Any) -> tuple[str, ...]:
        """The names of this many outputs."""
        count = len(outputs)
        if self.outputs is not None and len(self.outputs) != count:
            raise ValueError(f"{self.name}: {count} outputs, and {len(self.outputs)} names for them")
        return self.outputs or (("y",) if count == 1 else tuple(f"y{i}" for i in range(count)))

    def first_states(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The states before the first run on these inputs: zeros, and 0 for a free size that no input has."""
        sizes = {
            size: tensor.shape[axis]
            for name, tensor in inputs.items()
            for axis, size in self.dynamic.get(name, {}).items()
        }
        found = {}
        for name in self.states:
            example, free = self.inputs[name], self.dynamic.get(name, {})
            shape = [sizes.get(free[i], 0) if i in free else size for i, size in enumerate(example.shape)]
            found[name] = torch.zeros(shape, dtype=example.dtype)
        return found

    def trials(self) -> list[dict[str, torch.Tensor]]:
        """The example, inputs of other sizes where those are free, and what else there is."""
        names = list(dict.fromkeys(name for axes in self.dynamic.values() for name in axes.values()))
        more = {name: i + 1 for i, name in enumerate(names)}
        grown = {}
        for name, tensor in self.inputs.items():
            for axis, size in self.dynamic.get(name, {}).items():
                tensor = torch.cat([tensor, tensor.narrow(axis, 0, min(more[size], tensor.shape[axis]))], axis)
            grown[name] = tensor.contiguous()
        return [dict(self.inputs), *([grown] if names else []), *map(dict, self.more)]
