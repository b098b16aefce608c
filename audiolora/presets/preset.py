"""What a model family's preset says, and how targets become PEFT's ``target_modules``."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from audiolora.layers.any_convolution import channels_of, has_convolution_weight

GROUPS = ("conv", "attention", "ffn")
"""Names for kinds of modules that a preset knows."""

BOTH = ("conv", "attention")
"""What ``targets="both"`` means, unless the family's preset says otherwise."""

CONVOLUTIONS = (nn.Conv1d, nn.ConvTranspose1d)
"""What audiolora's own layers adapt."""

ADAPTABLE = (*CONVOLUTIONS, nn.Linear, nn.Embedding, nn.Conv2d, nn.Conv3d)
"""What can be adapted at all: the others by PEFT's layers."""


@dataclass(frozen=True)
class Preset:
    """One model family.

    Args:
        family: its name, for people.
        model_types: transformers' ``config.model_type`` values that it serves.
        groups: group name → module-name suffixes, as PEFT's ``target_modules`` takes them.
        refused: which of the groups cannot be adapted here → why, and what to do instead.
        both: the groups that ``targets="both"`` means here; those without a module in a model are left out.
        left_out: module-name suffixes that a group's suffixes would match and that are in no group; with a reason why
            an adapter there would do nothing they are refused by name, too, and with "" they may be named.
        example_inputs: config → keyword arguments for a forward pass on the smallest sensible input.
    """

    family: str
    model_types: tuple[str, ...]
    groups: Mapping[str, tuple[str, ...]]
    example_inputs: Callable[[Any], dict[str, torch.Tensor]]
    refused: Mapping[str, str] = field(default_factory=dict)
    both: tuple[str, ...] = BOTH
    left_out: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        unknown = set(self.groups) - set(GROUPS)
        if unknown:
            raise ValueError(f"{self.family}: unknown groups {sorted(unknown)}; a preset may define {GROUPS}")
        for what, named in (("refuses", self.refused), ("means by 'both'", self.both)):
            if undefined := set(named) - set(self.groups):
                raise ValueError(
                    f"{self.family}: {what} {sorted(undefined)}, which are none of its groups {list(self.groups)}"
                )


def modules_of(model: nn.Module) -> dict[str, nn.Module]:
    """The model's own modules by name: an adapted one as its base, and nothing of adapters or parametrizations."""
    modules: dict[str, nn.Module] = {}
    inside: list[str] = []
    for name, module in model.named_modules():
        if name.startswith(tuple(inside)) or "parametrizations" in name.split("."):
            continue
        if isinstance(module, BaseTunerLayer):
            inside.append(name + ".")
        modules[name] = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
    return modules


def matching(model: nn.Module, suffix: str) -> list[str]:
    """The full names of the modules that PEFT would match by this name or suffix."""
    return [name for name in modules_of(model) if name == suffix or name.endswith("." + suffix)]


def resolve_targets(model: nn.Module, targets: str | Sequence[str], preset: Preset | None) -> dict[str, list[str]]:
    """Each asked-for target (a group or a module name) with the full names of the modules it means.

    Args:
        model: the network to adapt.
        targets: ``"conv"``, ``"attention"``, ``"ffn"``, ``"both"``, or a list of these and of module names.
        preset: of the model's family, or None for any other network.

    Raises:
        ValueError: a target that matches nothing, that the preset refuses, or that is a layer no adapter fits.
    """
    both = preset.both if preset else BOTH
    asked = list(both) if targets == "both" else [targets] if isinstance(targets, str) else list(targets)
    if not asked:
        raise ValueError("targets is empty; name a group such as 'conv', or modules such as ['conv1', 'q_proj']")
    resolved = {target: _names(model, target, preset) for target in asked}
    if targets == "both":
        resolved = {target: names for target, names in resolved.items() if names}
    else:  # "conv" may also be what a module is called
        resolved = {target: names or _called(model, target) for target, names in resolved.items()}
    missing = [target for target, names in resolved.items() if not names]
    if missing or not resolved:
        raise ValueError(_nothing_matches(model, missing or asked, preset))
    _check_refused(model, resolved, preset)
    modules = modules_of(model)
    for name in dict.fromkeys(name for names in resolved.values() for name in names):
        _check_adaptable(name, modules[name])
    return resolved


def _check_adaptable(name: str, module: nn.Module) -> None:
    if isinstance(module, ADAPTABLE):
        return
    try:
        channels_of(module)
    except ValueError as error:
        raise ValueError(
            f"{name}: no adapter fits a {type(module).__name__}; targets may be "
            f"{', '.join(kind.__name__ for kind in ADAPTABLE)} and modules with a convolution's weight; {error}"
        ) from error


def _check_refused(model: nn.Module, resolved: Mapping[str, Sequence[str]], preset: Preset | None) -> None:
    """By module, so that what is refused as a group is refused by its own name too."""
    if preset is None:
        return
    for group, why in preset.refused.items():
        refused = set(_members(model, group, preset))
        for target, names in resolved.items():
            if not refused.isdisjoint(names):
                raise ValueError(f"{target!r} on {preset.family}: {why}")
    for suffix, why in preset.left_out.items():
        for target, names in resolved.items():
            if why and not set(matching(model, suffix)).isdisjoint(names):
                raise ValueError(f"{target!r} on {preset.family}: {suffix}: {why}")


def _names(model: nn.Module, target: str, preset: Preset | None) -> list[str]:
    if preset is not None and target in preset.groups:
        return _members(model, target, preset)
    if preset is None and target == "conv":
        return [name for name, module in modules_of(model).items() if isinstance(module, CONVOLUTIONS)]
    if preset is None and target == "attention":
        return [name for suffix in ("q_proj", "v_proj") for name in matching(model, suffix)]
    return matching(model, target)


def _members(model: nn.Module, group: str, preset: Preset) -> list[str]:
    """The full names of a group's modules."""
    left_out = {name for suffix in preset.left_out for name in matching(model, suffix)}
    return [name for suffix in preset.groups[group] for name in matching(model, suffix) if name not in left_out]


def _called(model: nn.Module, name: str) -> list[str]:
    """The modules of this name that an adapter fits."""
    modules = modules_of(model)
    fits = (each for each in matching(model, name) if isinstance(modules[each], ADAPTABLE))
    return [*fits, *(each for each in matching(model, name) if has_convolution_weight(modules[each]))]


def _nothing_matches(model: nn.Module, missing: list[str], preset: Preset | None) -> str:
    modules = modules_of(model)
    if "conv" in missing and not any(isinstance(module, CONVOLUTIONS) for module in modules.values()):
        return _no_convolution(type(model).__name__, modules)
    known = (
        f"the groups {', '.join(g for g in preset.groups if g not in preset.refused)}" if preset else "the group conv"
    )
    leaves = {re.sub(r".*\.", "", name) for name, module in modules.items() if isinstance(module, ADAPTABLE)}
    return (
        f"targets {missing} match no module of {type(model).__name__}; "
        f"it has {known} and modules named {', '.join(sorted(leaves)) or '(none that can be adapted)'}"
    )


def _no_convolution(model: str, modules: Mapping[str, nn.Module]) -> str:
    """Says so, and names what could be a target instead."""
    kinds: list[tuple[str, Callable[[nn.Module], bool]]] = [
        ("modules of its own with a convolution's weight, adapted when they are named", has_convolution_weight),
        ("Conv2d and Conv3d modules, which are left to PEFT's layers", lambda m: isinstance(m, (nn.Conv2d, nn.Conv3d))),
        ("Linear modules", lambda m: isinstance(m, nn.Linear)),
    ]
    found = {kind: [name for name, module in modules.items() if fits(module)] for kind, fits in kinds}
    said = [f"{kind}: {_few(names)}" for kind, names in found.items() if names]
    if not said:
        return f"{model} has no nn.Conv1d and no nn.ConvTranspose1d, and nothing else in it can be adapted"
    example = [re.sub(r".*\.(?=[^.]*[^.0-9])", "", name) for name in next(filter(None, found.values()))]
    return (
        f"{model} has no nn.Conv1d and no nn.ConvTranspose1d; targets could be its {'; '.join(said)}. Name them: "
        f"targets={list(dict.fromkeys(example))[:2]}"
    )


def _few(names: Sequence[str], shown: int = 12) -> str:
    """The names, a few of them if there are many."""
    more = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {more} more" if more > 0 else "")


def target_modules(model: nn.Module, names: Sequence[str]) -> list[str] | str:
    """PEFT's ``target_modules`` for exactly these modules: their last names if that says it, else a regex.

    A suffix list is what people write and read; but ``"0"`` would also mean ``encoder.0``, so where suffixes match more
    than was asked for, the full names become a pattern.
    """
    wanted = set(names)
    suffixes = sorted({re.sub(r".*\.", "", name) for name in names})
    if {name for suffix in suffixes for name in matching(model, suffix)} == wanted:
        return suffixes
    return "|".join(re.escape(name) for name in sorted(wanted))
