"""Geometric parametrisation (GmP): train lengths and directions of a network's weights instead of their entries.

    audiolora.geometric.convert(model)      # W = r · θ/‖θ‖ an output channel, with ‖θ‖ = 1 at the start
    …                                       # train everything, the lengths, the directions, or an adapter over it
    audiolora.geometric.revert(model)       # the plain model, with its keys

How this compares with DoRA and weight norm, and what was measured: docs/geometric.md.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from torch.nn.utils import parametrize

from audiolora.layers.geometric import DIRECTION, LENGTH, Geometric
from audiolora.layers.weight_norm import own_class, parametrizations_of

CONVERTIBLE = (nn.Linear, nn.Conv1d, nn.ConvTranspose1d)
"""What a length and a direction an output channel are defined for, subclasses too."""


def convert(model: nn.Module, target_modules: str | Sequence[str] | None = None) -> list[str]:
    """Give modules r (C_out,) and θ (like the weight) in the weight's place, in place; outputs stay to rounding.

    Each is trained if the weight was. A channel that is exactly zero gets r = 0 and any direction.

    Args:
        model: a network without adapters; adapters go over it afterwards.
        target_modules: PEFT's meaning: names of modules or ends of names, or one regular expression for whole names.
            None: every ``nn.Linear``, ``nn.Conv1d`` and ``nn.ConvTranspose1d`` with a weight of its own that nothing
            computes (weight norm) and no other module shares.

    Returns:
        The names of the converted modules.

    Raises:
        ValueError: a target that matches nothing or that cannot be converted, with the reason. Nothing is then changed.
        TypeError: the model is adapted already.

    Example:
        >>> net = nn.Sequential(nn.Conv1d(4, 8, 3), nn.ReLU(), nn.Conv1d(8, 2, 1))
        >>> convert(net, ["0"])
        ['0']
        >>> net[0].parametrizations.weight.original0.shape
        torch.Size([8])
    """
    if any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        raise TypeError(
            "the model is adapted; convert it first and adapt the converted model, or unload() the adapters"
        )
    shared = _shared(model)
    if target_modules is None:
        kinds = {name: module for name, module in model.named_modules() if isinstance(module, CONVERTIBLE)}
        chosen = {name: module for name, module in kinds.items() if _refused(name, module, shared) is None}
        if not chosen:
            raise ValueError(f"{type(model).__name__} has no linear layer or 1-D convolution that can be converted")
    else:
        chosen = _matching(model, target_modules)
        for name, module in chosen.items():
            why = _refused(name, module, shared)
            if why is not None:
                raise ValueError(f"{name}: {why}")
    for module in chosen.values():
        groups = module.groups if isinstance(module, nn.ConvTranspose1d) else None
        parametrize.register_parametrization(module, "weight", Geometric(groups))
    return list(chosen)


def revert(model: nn.Module) -> list[str]:
    """Put W = r · θ/‖θ‖ back into every converted module, in place: the plain model's classes, keys and their order.

    A weight is then trained if its r or its θ was.

    Returns:
        The names of the modules.

    Raises:
        ValueError: nothing is converted.
        TypeError: adapters lie over a converted module.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8))
        >>> convert(net) == revert(net), list(net.state_dict())
        (True, ['0.weight', '0.bias'])
    """
    found = dict(converted(model))
    if not found:
        raise ValueError(f"nothing in this {type(model).__name__} is converted; call audiolora.geometric.convert first")
    for name, module in found.items():
        if len(parametrizations_of(module, "weight")) > 1:
            raise TypeError(f"{name}: an adapter or another map lies over it; unload() or merge_and_unload() first")
    for module in found.values():
        chain: Any = parametrizations_of(module, "weight")
        trained = chain.original0.requires_grad or chain.original1.requires_grad
        with torch.no_grad():
            weight = nn.Parameter(module.weight.detach().clone(), requires_grad=trained)
        own_class(module)
        parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
        if "weight" not in module._parameters:  # torch leaves a frozen one as a tensor
            del module.weight
        rest = {name: module._parameters.pop(name) for name in list(module._parameters)}
        module._parameters.update({"weight": weight, **{n: p for n, p in rest.items() if n != "weight"}})
    return list(found)


def converted(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """The converted modules of a model, adapted or not, with their names.

    Example:
        >>> list(converted(nn.Linear(2, 2)))
        []
    """
    for name, module in model.named_modules():
        if parametrize.is_parametrized(module, "weight"):
            if isinstance(parametrizations_of(module, "weight")[0], Geometric):
                yield name, module


def lengths(model: nn.Module) -> dict[str, nn.Parameter]:
    """Every r (C_out,), by its name in the model: to train them alone, or with a learning rate of their own.

    Example:
        >>> net = nn.Sequential(nn.Conv1d(4, 8, 3))
        >>> _ = convert(net), net.requires_grad_(False)
        >>> for r in lengths(net).values():
        ...     _ = r.requires_grad_()
    """
    return _parts(model, LENGTH)


def directions(model: nn.Module) -> dict[str, nn.Parameter]:
    """Every θ, stored as the weight is, by its name in the model.

    Example:
        >>> net = nn.Sequential(nn.Conv1d(4, 8, 3))
        >>> _ = convert(net)
        >>> [theta.shape for theta in directions(net).values()]
        [torch.Size([8, 4, 3])]
    """
    return _parts(model, DIRECTION)


def plain_state_dict(model: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict that the model would have after `revert`: for a file that is the plain model's. A copy is made.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8))
        >>> _ = convert(net)
        >>> list(plain_state_dict(net))
        ['0.weight', '0.bias']
    """
    twin = copy.deepcopy(model)
    if any(converted(twin)):
        revert(twin)
    return twin.state_dict()


def _parts(model: nn.Module, which: str) -> dict[str, nn.Parameter]:
    return {
        f"{name}.parametrizations.weight.{which}".lstrip("."): getattr(parametrizations_of(module, "weight"), which)
        for name, module in converted(model)
    }


def _matching(model: nn.Module, target_modules: str | Sequence[str]) -> dict[str, Any]:
    modules = {name: module for name, module in model.named_modules() if ".parametrizations" not in f".{name}"}
    if isinstance(target_modules, str):
        chosen = {name: module for name, module in modules.items() if re.fullmatch(target_modules, name)}
        missing = [] if chosen else [target_modules]
    else:
        ends = {target: [n for n in modules if f".{n}".endswith(f".{target}")] for target in target_modules}
        missing = [target for target, names in ends.items() if not names]
        found = {name for names in ends.values() for name in names}
        chosen = {name: module for name, module in modules.items() if name in found}
    if missing or not chosen:
        raise ValueError(f"target_modules match nothing in this {type(model).__name__}: {missing or target_modules!r}")
    return chosen


def _shared(model: nn.Module) -> dict[int, list[str]]:
    """Names of the modules that hold a parameter, by the parameter's id."""
    owners: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for parameter in module._parameters.values():
            owners.setdefault(id(parameter), []).append(name)
    return owners


def _refused(name: str, module: nn.Module, shared: dict[int, list[str]]) -> str | None:
    """Why a module cannot be converted, and what to do; None if it can."""
    if not isinstance(module, CONVERTIBLE):
        kinds = ", ".join(f"nn.{kind.__name__}" for kind in CONVERTIBLE)
        return f"a {type(module).__name__} has no length and direction here, as {kinds} have; leave it out"
    weight = module._parameters.get("weight")
    if weight is None:
        return (
            "its weight is computed already (converted before, weight norm, spectral norm, …); leave it out, or "
            "take that off first with torch.nn.utils.parametrize.remove_parametrizations or remove_weight_norm"
        )
    if isinstance(weight, nn.UninitializedParameter):
        return "its weight has no shape before the model has run; run the model once first"
    if not weight.is_floating_point() or weight.dtype.itemsize == 1:
        return f"its weight is {weight.dtype}; a length and a direction need float16, bfloat16, float32 or float64"
    if not weight.isfinite().all():
        return "its weight has numbers that are not finite; take another checkpoint"
    others = [other for other in shared[id(weight)] if other != name]
    if others:
        return f"its weight is also that of {', '.join(others)}; untie them first, or leave it out"
    return None
