"""The ways of adapting a base that are compared: what is trained of it, and how large that is."""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel
from torch import nn

import audiolora
from audiolora.presets import preset_for, resolve_targets
from audiolora.presets.preset import GROUPS

Groups = tuple[str, ...]


@dataclass(frozen=True)
class Way:
    """One way.

    Args:
        what: in words.
        method: of `audiolora.adapt`, for adapters.
        groups: where adapters go, those that the base has; () for a way without adapters.
        rate: multiple of the grid's learning rates.
        bits: of the base under the adapters.
    """

    what: str
    method: str | None = None
    groups: Groups = ()
    rate: float = 1.0
    bits: int | None = None


_BOTH = ("conv", "attention")
WAYS: Mapping[str, Way] = {
    "frozen": Way("the base as it is"),
    "head": Way("the last layer"),
    "bias": Way("every bias (BitFit, arXiv 2106.10199)", rate=3.0),
    "full": Way("everything", rate=0.1),
    "lora-attention": Way("LoRA in attention", "lora", ("attention",)),
    "lora-attention-ffn": Way("LoRA in attention and feed-forward layers", "lora", ("attention", "ffn")),
    "lora-conv": Way("LoRA in the convolutions", "lora", ("conv",)),
    "lora": Way("LoRA in both", "lora", _BOTH),
    "dora": Way("DoRA in both", "dora", _BOTH),
    "loha": Way("LoHa in both", "loha", _BOTH),
    "lokr": Way("LoKr in both", "lokr", _BOTH),
    "adalora": Way("AdaLoRA in both", "adalora", _BOTH),
    "gmp": Way("everything, as r · θ/‖θ‖ (GmP)", rate=0.1),
    "gmp-r": Way("the magnitudes r of GmP alone", rate=3.0),
    "lora-int8": Way("LoRA in both over an 8-bit base", "lora", _BOTH, bits=8),
    "lora-nf4": Way("LoRA in both over a 4-bit base", "lora", _BOTH, bits=4),
}


@dataclass(frozen=True)
class Prepared:
    """A base made ready for a way: what it trains requires a gradient, and nothing else does."""

    net: nn.Module
    ranks: Mapping[str, int]


def groups_of(base: nn.Module) -> tuple[str, ...]:
    """The groups of targets that a base has, of `presets.GROUPS`."""
    found = []
    for group in GROUPS:
        try:
            resolve_targets(base, [group], preset_for(base))
        except ValueError:
            continue
        found.append(group)
    return tuple(found)


def check_ways(asked: Sequence[str]) -> None:
    """Nothing if there are such ways.

    Raises:
        ValueError: those that do not exist.
    """
    if unknown := [way for way in asked if way not in WAYS]:
        raise ValueError(f"ways are {', '.join(WAYS)}; {', '.join(unknown)} is none of them")


def ways_for(base: nn.Module, asked: Sequence[str] = ()) -> tuple[str, ...]:
    """The ways that a base can take; one that would be the same as another is left out.

    Args:
        base: the network.
        asked: those wanted; () for all.

    Raises:
        ValueError: a way that does not exist, or one that was asked for and the base cannot take.

    Example:
        >>> from audiolora.series.nets import TCNForecaster
        >>> "lora-attention" in ways_for(TCNForecaster(1, 6, channels=4))
        False
    """
    check_ways(asked)
    there = groups_of(base)
    possible = [name for name, way in WAYS.items() if not way.groups or set(way.groups) & set(there)]
    if not {"attention", "ffn"} <= set(there):
        possible = [name for name in possible if name != "lora-attention-ffn"]
    if len(set(_BOTH) & set(there)) == 1:  # then "both" is this one
        possible = [name for name in possible if name not in ("lora-attention", "lora-conv")]
    if lacking := [way for way in asked if way not in possible]:
        raise ValueError(
            f"{type(base).__name__} has targets of the kinds {', '.join(there) or 'none'}, so that "
            f"{', '.join(lacking)} has nothing to adapt, or is what lora is; leave it out"
        )
    return tuple(way for way in possible if not asked or way in asked)


def prepared(base: nn.Module, way: str, *, head: Sequence[str], parameters: int, steps: int, seed: int) -> Prepared:
    """The base with what a way trains; it is used up.

    Args:
        base: without adapters, frozen.
        way: of `WAYS`.
        head: names of the modules that make the last layer.
        parameters: that an adapter is to have: half of them in convolutions and half in attention where it goes to
            both, as near as whole ranks come.
        steps: of the training, which AdaLoRA spreads its allocations over.
        seed: of the adapters' start.

    Raises:
        ValueError: a base that the way does not fit.
    """
    plan, ranks = WAYS[way], dict[str, int]()
    net = base.requires_grad_(way == "full")
    if plan.bits is not None:
        net = audiolora.quantize(net, bits=plan.bits)
    if plan.method is not None:
        groups = [group for group in plan.groups if group in groups_of(net)]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net, ranks = _adapted(net, plan.method, groups, parameters, steps)
    elif way in ("gmp", "gmp-r"):
        audiolora.geometric.convert(net)
        net.requires_grad_(way == "gmp")
        for parameter in audiolora.geometric.lengths(net).values():
            parameter.requires_grad_(True)
    elif way == "head":  # by module: an output layer may be tied to an embedding, and then has another name
        for name in head:
            net.get_submodule(name).requires_grad_(True)
    elif way == "bias":
        biases = [p for name, p in net.named_parameters() if name.rpartition(".")[2] == "bias"]
        if not biases:
            raise ValueError(f"{type(net).__name__} has no parameters for {way!r}; leave it out")
        for parameter in biases:
            parameter.requires_grad_(True)
    return Prepared(net, ranks)


def _adapted(
    net: nn.Module, method: str, groups: Sequence[str], parameters: int, steps: int
) -> tuple[nn.Module, dict[str, int]]:
    if method == "adalora":  # one budget for all of them: the rank that LoRA would have everywhere
        r = rank_for(net, "lora", groups, parameters)
        schedule = audiolora.RankSchedule(total_step=steps)
        return audiolora.adapt(net, method, r=r, targets=groups, schedule=schedule), dict.fromkeys(groups, r)
    ranks = {group: rank_for(net, method, [group], parameters // len(groups)) for group in groups}
    return audiolora.adapt(net, method, r=ranks, targets=groups), ranks


def rank_for(net: nn.Module, method: str, groups: Sequence[str], parameters: int) -> int:
    """The rank at which adapters of these groups come nearest to a number of parameters; at least 1."""
    one, two = (_size(net, method, groups, r) for r in (1, 2))
    return max(1, 1 + round((parameters - one) / max(1, two - one)))


def shipped_bytes(net: nn.Module) -> int:
    """What a deployment adds to the base: the adapter's file, or the trained tensors."""
    if isinstance(net, PeftModel):
        with tempfile.TemporaryDirectory(prefix="audiolora-adapter-") as folder:
            net.save_pretrained(folder, save_embedding_layers=False)
            return (Path(folder) / "adapter_model.safetensors").stat().st_size
    return sum(p.numel() * p.element_size() for p in net.parameters() if p.requires_grad)


def _size(net: nn.Module, method: str, groups: Sequence[str], r: int) -> int:
    adapted = audiolora.adapt(copy.deepcopy(net), method, r=r, targets=groups)
    return sum(math.prod(p.shape) for p in adapted.parameters() if p.requires_grad)
