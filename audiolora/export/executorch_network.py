"""The plain network with an adapter in tensors of its own, as XNNPACK takes them: ready-made constants of operators.

XNNPACK packs the weights of convolutions and linear maps when a program is loaded, so that a weight must be a constant
then: one that a graph computes, W + B·A, is left to a portable kernel that is ten to a hundred times slower. So each
slot is a constant in the very arrangement that an operator takes, and acts beside the base's own weight:

    y = (1 + gain) ⊙ (conv(x, W) + conv(conv(x, A), B)) + conv(x, delta) + (b + delta of b)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from audiolora.export.onnx import LINEAR_MAPS, WithSlots
from audiolora.export.slots import Target


@dataclass(frozen=True)
class Use:
    """The operator that takes a tensor: torch's function, its groups, and as what ("weight" or "bias")."""

    func: Any
    groups: int
    role: str


class WithConstants(WithSlots):
    """A part of the plain network and the tensors of an adapter, each in the arrangement that an operator takes.

    Args:
        net: the view; tensors that have slots and are shared between modules are untied.
        plain: the network that it is a view of.
        targets: the tensors that have slots; those that the view does not use are left out.
        values: by slot; the ranks of all adapters that it will take.
        inputs: an example, to see which operator takes which tensor.

    Raises:
        ValueError: a tensor that something else takes than a convolution or a linear map.
    """

    def __init__(
        self,
        net: nn.Module,
        plain: nn.Module,
        targets: Sequence[Target],
        values: Mapping[str, torch.Tensor],
        inputs: Sequence[torch.Tensor],
    ) -> None:
        super().__init__(net, plain, targets, "fact")
        for target in self.targets:
            _untie(net, self.paths[target.name])
        uses = _uses(self, inputs)
        self.targets = tuple(target for target in self.targets if target.name in uses)
        self.names = [slot.name for target in self.targets for slot in target.slots("r")]
        self.constants = nn.Module()
        self.places = {name: f"slot{i}" for i, name in enumerate(self.names)}
        for target in self.targets:
            for slot in target.slots("r"):
                part = slot.name.rpartition(".")[2]
                arranged = _arranged(part, values[slot.name], target, uses[target.name])
                self.constants.register_buffer(self.places[slot.name], arranged.contiguous().clone())
            if target.gain:
                one = torch.ones_like(self.constant(target, "gain"))
                self.constants.register_buffer(_ones(self.places, target), one)

    def forward(self, *inputs: Any) -> Any:
        with _Beside(self):
            return self.net(*inputs)

    def constant(self, target: Target, part: str) -> torch.Tensor:
        """A slot's tensor, arranged."""
        found: torch.Tensor = getattr(self.constants, self.places[f"{target.name}.{part}"])
        return found

    def one(self, target: Target) -> torch.Tensor:
        """1, as the gain is arranged: a number would be a tensor of another kind, which XNNPACK does not take."""
        found: torch.Tensor = getattr(self.constants, _ones(self.places, target))
        return found

    def target_of(self, tensor: Any) -> Target | None:
        """Whose tensor this is."""
        return next((target for target in self.targets if self.tensor(target) is tensor), None)


class _Beside(TorchFunctionMode):
    """Each convolution and linear map with its adapter beside it."""

    def __init__(self, owner: WithConstants) -> None:
        super().__init__()
        self.owner = owner

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.pad:
            return _pad(*args, **kwargs)
        if func not in LINEAR_MAPS:
            return func(*args, **kwargs)
        call = dict(zip(LINEAR_MAPS[func], args, strict=False)) | kwargs
        weight, bias = (self.owner.target_of(call.get(role)) for role in ("weight", "bias"))
        return _beside(self.owner, func, call, weight, bias)


def _beside(owner: WithConstants, func: Any, call: dict[str, Any], weight: Target | None, bias: Target | None) -> Any:
    linear, later = func is F.linear, None
    if weight is not None and weight.gain:
        later = call.pop("bias", None)
    y, call = func(**call), {name: value for name, value in call.items() if name != "bias"}
    if weight is not None and weight.low_rank:
        z, B = func(**{**call, "weight": owner.constant(weight, "lora_A")}), owner.constant(weight, "lora_B")
        y = y + (F.linear(z, B) if linear else F.conv1d(z, B, groups=call.get("groups", 1)))
    if weight is not None and weight.gain:
        y = y * (owner.constant(weight, "gain") + owner.one(weight))
    if weight is not None and weight.delta:
        y = y + func(**{**call, "weight": owner.constant(weight, "delta")})
    if later is not None:
        y = y + (later if linear else later.unsqueeze(1))
    return y if bias is None else y + owner.constant(bias, "delta")


def _pad(input: torch.Tensor, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> torch.Tensor:
    """F.pad; circular as a concatenation, since ExecuTorch takes torch's own way for one of a single batch size."""
    if mode != "circular" or len(pad) != 2:
        return F.pad(input, pad, mode, value)
    length = input.shape[-1]
    return torch.cat([input.narrow(-1, length - pad[0], pad[0]), input, input.narrow(-1, 0, pad[1])], -1)


class _Watched(TorchFunctionMode):
    """Notes which functions take the targets' tensors."""

    def __init__(self, owner: WithConstants) -> None:
        super().__init__()
        self.owner = owner
        self.met: dict[str, set[Use]] = {}
        self.elsewhere: dict[str, str] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        call = dict(zip(LINEAR_MAPS.get(func, ()), args, strict=False)) | kwargs
        name = getattr(func, "__name__", str(func))
        for value in (*args, *kwargs.values()):
            target = self.owner.target_of(value) if isinstance(value, torch.Tensor) else None
            if target is None or name in _LOOKS:
                continue
            role = next((r for r in ("weight", "bias") if call.get(r) is value), None) if func in LINEAR_MAPS else None
            if role is None:
                self.elsewhere[target.name] = name
            else:
                self.met.setdefault(target.name, set()).add(Use(func, call.get("groups", 1), role))
        return func(*args, **kwargs)


# What only looks at a tensor's sizes or kind.
_LOOKS = ("__get__", "size", "dim", "numel", "stride", "is_floating_point", "is_complex")


@torch.no_grad()
def _uses(owner: WithConstants, inputs: Sequence[torch.Tensor]) -> dict[str, Use]:
    seen = _Watched(owner)
    with seen:
        owner.net(*inputs)
    found: dict[str, Use] = {}
    for target in owner.targets:
        uses = seen.met.get(target.name, set())
        if not uses and target.name not in seen.elsewhere:
            continue
        low_rank = any(use.role == "bias" for use in uses) and target.low_rank
        if len(uses) != 1 or target.name in seen.elsewhere or low_rank:
            by = seen.elsewhere.get(target.name, "more than one operator")
            raise ValueError(
                f"{target.name}: taken by {by}, and ExecuTorch's adapters go into the weights and biases of Conv1d, "
                "ConvTranspose1d and Linear alone; leave it out of the adapter, or export with target='onnx'"
            )
        found[target.name] = next(iter(uses))
    return found


def _arranged(part: str, value: torch.Tensor, target: Target, use: Use) -> torch.Tensor:
    linear = use.func is F.linear
    if part == "gain" or use.role == "bias":
        return value if linear else value.unsqueeze(1)
    if part == "delta" or linear:
        return value
    if part == "lora_B":
        return value.unsqueeze(2)
    kernel = value.view(-1, *target.kernel_shape[1:])
    kernel = kernel if target.transposed_groups is None else kernel.transpose(0, 1)
    return kernel.repeat(use.groups, 1, 1)  # the groups share A, and each runs it on its own channels


def _ones(places: Mapping[str, str], target: Target) -> str:
    return f"ones_{places[f'{target.name}.gain']}"


def _untie(net: nn.Module, name: str) -> None:
    """A tensor of its own: of two modules that share one only the adapted has an adapter."""
    path, _, last = name.rpartition(".")
    module = net.get_submodule(path)
    parameter, buffer = module._parameters.get(last), module._buffers.get(last)
    if parameter is not None:
        module._parameters[last] = nn.Parameter(parameter.detach().clone(), requires_grad=False)
    else:
        assert buffer is not None
        module._buffers[last] = buffer.clone()
