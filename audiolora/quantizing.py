"""``audiolora.quantize``: frozen weights in 8 or 4 bits, under adapters that train in float; `dequantize` goes back.

The scheme (`conv.quantized`) is the one that ``export(quantize="int8")`` writes: a device runs the very int8 weights
that an adapter was trained over. Linears have it too: bitsandbytes and torchao choose scales of their own, which no
exported graph could be equal to. (A model whose Linears they have quantised keeps those.)
"""

import re
from collections import Counter
from collections.abc import Sequence
from typing import TypeVar

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils.weight_norm import WeightNorm

from audiolora.integration import enable
from audiolora.layers.any_convolution import STOCK, has_convolution_weight
from audiolora.layers.quantized import KINDS, dequantize_weight, packed_elsewhere, quantization_of, quantize_weight
from audiolora.layers.weight_norm import parametrizations_of
from audiolora.presets.preset import modules_of

_M = TypeVar("_M", bound=nn.Module)


def quantize(
    model: _M,
    bits: int = 8,
    *,
    target_modules: str | Sequence[str] | None = None,
    kind: str | None = None,
    group_size: int = 64,
) -> _M:
    """Keep the weights of convolutions and linear maps in few bits, from now on; in place.

    A forward unpacks each weight when it is used. Adapters train on top in float, by `adapt` or PEFT, whose layers see
    the modules as before; audiolora is enabled, so that merges into a quantised base are refused instead of lost. A
    ``state_dict`` holds the codes and scales: load it into a model that was quantised in the same way, of any weights
    or on ``meta``. A weight norm, a constant in a frozen base, is folded in.

    Args:
        model: without adapters.
        bits: 8 (per output channel, 4 × smaller than float32) or 4 (in groups, 7 × smaller).
        target_modules: as PEFT has it: names or ends of names, or a regular expression over whole names. None: every
            ``nn.Conv1d``, ``nn.ConvTranspose1d`` and ``nn.Linear`` whose weight is no other module's too and is not
            quantised yet, here or by another library.
        kind: of 4 bits, ``"nf4"`` (the default, QLoRA's) or ``"int4"``.
        group_size: of 4 bits, how many values of an output channel share a scale.

    Returns:
        The model.

    Raises:
        ValueError: bits, a kind or a group size that can't be, a name that matches nothing, or a module that cannot be
            quantised: of another class, quantised already, with a weight that another module shares, that something
            else computes, or that is not finite. Every such module is named, and the model is as it was.
        TypeError: the model is adapted already.

    Example:
        >>> import torch, audiolora
        >>> net = audiolora.quantize(torch.nn.Sequential(torch.nn.Conv1d(4, 8, 3)), bits=8)
        >>> net.state_dict()["0.parametrizations.weight.original"].dtype
        torch.int8
        >>> audiolora.adapt(net, r=2)(torch.zeros(1, 4, 10)).shape
        torch.Size([1, 8, 8])
    """
    kind = _kind(bits, kind, group_size)
    if any(isinstance(module, (PeftModel, BaseTunerLayer)) for module in model.modules()):
        raise TypeError("the model is adapted already, over its float weights; quantise it first and adapt it then")
    named = _chosen(model, target_modules)
    shared = _shared(model)
    wrong = [f"{name}: {why}" for name, module in named.items() if (why := refused(module, shared))]
    if wrong:
        more = f"; and {len(wrong) - 8} more" if len(wrong) > 8 else ""
        raise ValueError(f"{'; '.join(wrong[:8])}{more}; leave what cannot be quantised out of target_modules")
    for module in named.values():
        quantize_weight(module, kind, group_size)
    enable()
    return model


def dequantize(model: _M) -> _M:
    """Give quantised modules frozen float weights, the rounded ones, in place; adapters stay as they are.

    Outputs do not change. Adapters can be merged then; what was merged may be quantised anew, which rounds them too.

    Returns:
        The model.

    Raises:
        ValueError: nothing in it is quantised.

    Example:
        >>> import torch, audiolora
        >>> net = audiolora.quantize(torch.nn.Conv1d(4, 8, 3))
        >>> audiolora.dequantize(net).weight.dtype
        torch.float32
    """
    found = [module for module in model.modules() if quantization_of(module) is not None]
    if not found:
        raise ValueError(f"nothing in this {type(model).__name__} is quantised by audiolora.quantize")
    for module in found:
        dequantize_weight(module)
    return model


def quantizable(model: nn.Module) -> dict[str, nn.Module]:
    """What can be quantised as it is: convolutions and Linears by name, adapted ones as their bases."""
    shared = _shared(model)
    return {
        name: module
        for name, module in modules_of(model).items()
        if isinstance(module, (*STOCK, nn.Linear)) and refused(module, shared) is None
    }


def refused(module: nn.Module, shared: frozenset[int] = frozenset()) -> str | None:
    """Why this module cannot be quantised, or None.

    Args:
        module: any.
        shared: ids of parameters that several modules hold.
    """
    kind = type(module).__name__.removeprefix("Parametrized")
    quantization = quantization_of(module)
    if quantization is not None:
        return f"quantised already, in {quantization.kind}; audiolora.dequantize(model) gives float weights back"
    if not isinstance(module, (*STOCK, nn.Linear)) and not has_convolution_weight(module):
        return f"a {kind} cannot be quantised; nn.Conv1d, nn.ConvTranspose1d and nn.Linear can"
    sources = _sources(module)
    if sources is None:
        return "its weight is computed by something else (spectral_norm, pruning, …); take that off first"
    for source in sources:
        if isinstance(source, nn.UninitializedParameter):
            return "its weight has no shape before the model has run; run the model once first"
        if (packed := packed_elsewhere(source)) is not None:
            return f"its weight is {packed}, quantised by something else; float weights can be"
        if id(source) in shared:
            return "its weight is another module's too, which would keep it in float; untie them first"
        if not source.is_meta and not source.isfinite().all():
            return "its weight has values that are not finite; load another checkpoint"
    return None


def _sources(module: nn.Module) -> list[nn.Parameter] | None:
    """What the weight is made of: itself, or weight norm's tensors; None if that is something else."""
    if parametrize.is_parametrized(module, "weight"):
        chain = parametrizations_of(module, "weight")
        maps = [part for part in chain if not hasattr(part, "layer")]  # beside an adapter's
        known = not maps or (len(maps) == 1 and type(maps[0]) is parametrizations._WeightNorm)
        return list(chain.parameters()) if known else None
    weight = module._parameters.get("weight")
    if weight is not None:
        return [weight]
    if any(isinstance(hook, WeightNorm) and hook.name == "weight" for hook in module._forward_pre_hooks.values()):
        return [module.weight_g, module.weight_v]  # type: ignore[list-item]
    return None


def _shared(model: nn.Module) -> frozenset[int]:
    held = Counter(id(p) for module in set(model.modules()) for p in module._parameters.values() if p is not None)
    return frozenset(key for key, count in held.items() if count > 1)


def _kind(bits: int, kind: str | None, group_size: int) -> str:
    if isinstance(bits, bool) or bits not in KINDS:
        raise ValueError(f"bits must be 8 or 4, got {bits!r}")
    if kind is not None and kind not in KINDS[bits]:
        raise ValueError(f"of {bits} bits, kind must be one of {', '.join(KINDS[bits])}, got {kind!r}")
    if not isinstance(group_size, int) or isinstance(group_size, bool) or group_size < 2:
        raise ValueError(f"group_size must be a whole number of at least 2, got {group_size!r}; try 64")
    return kind or KINDS[bits][0]


def _chosen(model: nn.Module, target_modules: str | Sequence[str] | None) -> dict[str, nn.Module]:
    modules = modules_of(model)
    if target_modules is None:
        shared = _shared(model)
        chosen: dict[str, nn.Module] = {
            name: module
            for name, module in modules.items()
            if isinstance(module, (*STOCK, nn.Linear))
            and quantization_of(module) is None
            and not any(id(source) in shared or packed_elsewhere(source) for source in _sources(module) or [])
        }
        if not chosen:
            raise ValueError(
                f"{type(model).__name__} has no nn.Conv1d, nn.ConvTranspose1d or nn.Linear that can be quantised"
            )
        return chosen
    if isinstance(target_modules, str):
        try:
            rule = re.compile(target_modules)
        except re.error as error:
            raise ValueError(f"target_modules={target_modules!r} is no regular expression: {error}") from None
        found = {target_modules: [name for name in modules if rule.fullmatch(name)]}
    else:
        found = {end: [name for name in modules if name == end or name.endswith(f".{end}")] for end in target_modules}
    nothing = [repr(end) for end, names in found.items() if not names]
    if nothing or not found:
        ends = sorted({name.rpartition(".")[2] for name in quantizable(model)})
        raise ValueError(
            f"target_modules: {', '.join(nothing) or 'an empty list'} matches nothing in {type(model).__name__}; what "
            f"can be quantised is named {', '.join(ends) or '(nothing)'}"
        )
    return {name: modules[name] for names in found.values() for name in names}
