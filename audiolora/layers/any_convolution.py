"""What a convolution's weight looks like in a module that is no ``nn.Conv1d``.

Some libraries write a class of their own around ``F.conv1d`` (neuralforecast's BiTCN: ``CustomConv1d``). A map on the
weight needs little of such a module: that ``weight`` is a kernel (C_out, C_in/g, k) with g groups. A shape alone does
not say so (a stack of matrices has three axes too), so the module must say one thing more: ``groups``, or
``in_channels``, from which g follows. Whatever else it says must agree. Nobody looks for such modules: they are
adapted when they are named.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.utils import parametrize

from audiolora.conv.geometry import first
from audiolora.layers.weight_norm import parametrizations_of

STOCK = (nn.Conv1d, nn.ConvTranspose1d)
"""Torch's own, and what derives from them."""


@dataclass(frozen=True)
class Channels:
    """The channels and groups of a convolution, and the length k of its kernel."""

    in_channels: int
    out_channels: int
    groups: int
    kernel_size: int

    @property
    def in_per_group(self) -> int:
        """C_in/g: the channels that one output sees."""
        return self.in_channels // self.groups


def channels_of(module: nn.Module) -> Channels:
    """The channels of torch's convolutions, and of any other module that keeps the rule below.

    The rule: ``weight`` is a floating-point parameter, weight-normed or not, of shape (C_out, C_in/g, k), and the
    module has an integer ``groups`` or ``in_channels``; of ``groups``, ``in_channels``, ``out_channels`` and
    ``kernel_size`` those that it has agree with that shape, and it is not ``transposed``.

    Raises:
        ValueError: the module does not keep the rule; the message says which part, and what to do.

    Example:
        >>> channels_of(nn.Conv1d(4, 6, 3, groups=2))
        Channels(in_channels=4, out_channels=6, groups=2, kernel_size=3)
    """
    if isinstance(module, STOCK):
        return Channels(module.in_channels, module.out_channels, module.groups, first(module.kernel_size))
    kind, weight = type(module).__name__, _weight_of(module)
    if weight is None or weight.dim() != 3 or not weight.is_floating_point():
        said = "none" if weight is None else f"{tuple(weight.shape)} {weight.dtype}"
        raise ValueError(f"a {kind} has no convolution's weight: floating-point (C_out, C_in/groups, k), got {said}")
    if getattr(module, "transposed", False):
        raise ValueError(f"a {kind} is transposed; of transposed convolutions an adapter fits nn.ConvTranspose1d")
    out_channels, in_per_group, kernel_size = weight.shape
    groups, in_channels = _said(module, "groups"), _said(module, "in_channels")
    if groups is None and in_channels is None:
        raise ValueError(
            f"a {kind} has a weight {tuple(weight.shape)} and says neither `groups` nor `in_channels`, so that it may "
            "be no convolution; if it is one, set module.groups = 1 (or its number of groups) first"
        )
    groups = max(1, (in_channels or 0) // max(1, in_per_group)) if groups is None else groups
    found = Channels(in_per_group * groups, out_channels, groups, kernel_size)
    _check_agrees(module, found, tuple(weight.shape))
    return found


def has_convolution_weight(module: nn.Module) -> bool:
    """Whether a module that is none of torch's own convolutions keeps the rule of `channels_of`."""
    if isinstance(module, STOCK):
        return False
    try:
        channels_of(module)
    except ValueError:
        return False
    return True


def _weight_of(module: nn.Module) -> torch.Tensor | None:
    """The module's own weight; reading it leaves a parametrization with a memory (spectral norm) as it was."""
    if not parametrize.is_parametrized(module, "weight"):
        weight = module._parameters.get("weight")
        computed = "weight_v" in module._parameters  # the old weight norm keeps the weight as a plain attribute
        return getattr(module, "weight", None) if weight is None and computed else weight
    chain = parametrizations_of(module, "weight")
    training = chain.training
    chain.eval()
    try:
        with torch.no_grad():
            return getattr(module, "weight")  # noqa: B009 (a property, not an attribute that mypy knows)
    finally:
        chain.train(training)


def _said(module: nn.Module, name: str) -> int | None:
    """The one number of a setting that may be ``3`` or ``(3,)``; None if the module does not say it."""
    value = getattr(module, name, None)
    value = first(value) if value else value
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _check_agrees(module: nn.Module, found: Channels, shape: tuple[int, ...]) -> None:
    if found.groups < 1 or found.out_channels % found.groups:
        raise ValueError(
            f"a {type(module).__name__} says groups={found.groups}, which does not divide the {found.out_channels} "
            f"output channels of its weight {shape}"
        )
    for name in ("in_channels", "out_channels", "kernel_size"):
        said = _said(module, name)
        if said is not None and said != getattr(found, name):
            raise ValueError(
                f"a {type(module).__name__} says {name}={said}, and its weight {shape}, taken as "
                f"(C_out, C_in/groups, k) with groups={found.groups}, says {getattr(found, name)}; an adapter fits "
                "weights that are stored that way"
            )
