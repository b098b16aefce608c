"""Whether plain PEFT, without audiolora, computes the same function from a convolution's adapter.

PEFT adds B(A(x)) to the base's output, with A and B modules of the base's own class: ``type(base)(C_in, r, k, stride,
padding)``. That is W + s·BA where a convolution is ordinary. Where dilation, groups, a padding mode, a computed weight
or a hook is left out of that path, it is another function (LoHa and LoKr run ``F.conv1d`` with ΔW, and leave out the
padding mode alone); for a class with a forward or a constructor of its own
there is no telling from outside, so PEFT's layer is run beside the weight's map on random numbers.
"""

import copy
import warnings
from typing import Any

import torch
from peft import LoHaConfig, LoKrConfig, LoraConfig, PeftConfig
from peft.tuners.loha.layer import Conv1d as PeftLoHa
from peft.tuners.lokr.layer import Conv1d as PeftLoKr
from peft.tuners.lora.layer import Conv1d as PeftConv1d
from torch import nn
from torch.nn.utils import parametrize

from audiolora.conv.factors import LowRank, adapted_weight
from audiolora.layers.base import WeightMap
from audiolora.layers.weight_norm import parametrizations_of

# What a stranger's constructor or forward raises on arguments that it was not written for.
_MISFITS = (TypeError, ValueError, RuntimeError, AttributeError, LookupError, AssertionError)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
_NOT_COPIED = {"_parameters", "_modules", "forward", "_old_forward"}


def why_plain_peft_differs(base: nn.Module, config: PeftConfig) -> str | None:
    """Why PEFT's own layer would compute something else with this adapter, fail, or lose a merge; None if it agrees.

    The function of a batch in ``eval`` mode is meant. Torch's random state stays as it was.

    Args:
        base: the convolution, with or without audiolora's map on its weight.
        config: the adapter's, LoRA's, LoHa's or LoKr's; of LoRA's ``use_dora`` and ``lora_bias`` matter.

    Returns:
        The reason in a few words, or None.

    Example:
        >>> why_plain_peft_differs(nn.Conv1d(4, 4, 3, dilation=2), LoraConfig())
        'dilation=2, which the factor A of PEFT does not have'
        >>> why_plain_peft_differs(nn.Conv1d(4, 4, 3, stride=2, padding=1), LoraConfig())
    """
    cls = type(base).__bases__[0] if parametrize.is_parametrized(base) else type(base)
    if isinstance(base, nn.Linear):
        return _setting_differs(base, cls)
    if not isinstance(base, nn.Conv1d):
        return f"PEFT adapts no {cls.__name__}"
    why = _geometry_differs(base, isinstance(config, LoraConfig)) or _setting_differs(base, cls)
    return why or _class_differs(base, cls, config)


def _geometry_differs(base: nn.Conv1d, factored: bool) -> str | None:
    """Where PEFT runs the factors by themselves, or (LoHa, LoKr) ΔW as a whole."""
    if factored and base.groups > 1:
        return f"groups={base.groups}, which share the factor A here"
    if factored and base.dilation[0] > 1 and base.kernel_size[0] > 1:
        return f"dilation={base.dilation[0]}, which the factor A of PEFT does not have"
    if base.padding_mode != "zeros" and any(base._reversed_padding_repeated_twice):
        path = "the factor A of PEFT" if factored else "PEFT's convolution with ΔW"
        return f"padding_mode={base.padding_mode!r}, which {path} does not have"
    return None


def _setting_differs(base: nn.Conv1d | nn.Linear, cls: type) -> str | None:
    """What stands around the convolution: parametrizations, hooks, a forward put onto the instance."""
    names: Any = base.parametrizations if parametrize.is_parametrized(base) else ()
    others = [part for name in names for part in parametrizations_of(base, name) if not isinstance(part, WeightMap)]
    for part in others[:1]:
        return f"its weight is computed ({type(part).__name__.lstrip('_')}), and a merge in PEFT is lost"
    if any(getattr(base, hooks) for hooks in _HOOKS):
        return "its forward hooks are not run on PEFT's factors"
    # accelerate puts a forward of its own onto the instance that moves tensors between devices, nothing more.
    forward = base.__dict__.get("_old_forward" if hasattr(base, "_hf_hook") else "forward")
    if forward is not None and getattr(forward, "__func__", None) is not cls.forward:  # type: ignore[attr-defined]
        return "its forward was replaced on the instance"
    return None


def _class_differs(base: nn.Conv1d, cls: type, config: PeftConfig) -> str | None:
    """A subclass with PEFT's layer on it, against the same subclass with W' for its weight."""
    if cls is nn.Conv1d:
        return None
    span = base.dilation[0] * (base.kernel_size[0] - 1) + 1
    lengths = [length + (length == base.in_channels) for length in (2 * span + 8, 3 * span + 13)]
    with torch.no_grad(), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            agrees = all(_same_output(base, cls, config, length) for length in lengths)
        except _MISFITS as error:
            return f"PEFT's layer fails on {cls.__name__} ({type(error).__name__})"
    return None if agrees else f"PEFT's layer on {cls.__name__} is another function"


def _same_output(base: nn.Conv1d, cls: type, config: PeftConfig, length: int) -> bool:
    generator = torch.Generator().manual_seed(length)
    layer, weight, bias = _adapted_by_peft(_plain_copy(base, cls), config, generator)
    ours = _plain_copy(base, cls)
    ours._parameters["weight"] = nn.Parameter(weight)
    ours._parameters["bias"] = None if bias is None else nn.Parameter(bias)

    def run(module: nn.Module) -> Any:
        return copy.deepcopy(module)(x)  # of a copy: a streaming convolution keeps what it has seen

    x = torch.randn(1, base.in_channels, length, generator=generator, dtype=torch.float64)
    try:
        expected = run(ours)
    except _MISFITS:
        x = x.mT
        expected = run(ours)
    unmerged = run(layer)
    layer.merge()
    return all(y.shape == expected.shape and torch.allclose(y, expected, 1e-9, 1e-9) for y in (unmerged, run(layer)))


def _adapted_by_peft(
    plain: Any, config: PeftConfig, generator: torch.Generator
) -> tuple[Any, torch.Tensor, torch.Tensor | None]:
    """PEFT's layer around a convolution, with random factors, and the W' and b' that they stand for."""
    if not isinstance(config, LoraConfig):
        kind, settings = (PeftLoHa, LoHaConfig) if isinstance(config, LoHaConfig) else (PeftLoKr, LoKrConfig)
        layer = kind(plain, "probe", config=settings(r=2), r=2, alpha=3).eval()
        _fill(layer, generator)
        return layer, plain.weight + layer.get_delta_weight("probe"), plain.bias
    options = {"use_dora": config.use_dora, "lora_bias": config.lora_bias}
    layer = PeftConv1d(plain, "probe", config=LoraConfig(r=2, **options), r=2, lora_alpha=3).eval()
    _fill(layer, generator)
    s, A, B = layer.scaling["probe"], layer.lora_A["probe"].weight, layer.lora_B["probe"]
    magnitude = layer.lora_magnitude_vector["probe"].weight if config.use_dora else None
    weight = adapted_weight(plain.weight, LowRank(A, B.weight.flatten(1), s), magnitude)
    return layer, weight, plain.bias + s * B.bias if config.lora_bias else plain.bias


def _plain_copy(base: nn.Conv1d, cls: type) -> Any:
    """The convolution in its own class, float64 on the CPU, without maps and hooks; its weights are to be filled."""
    copied: nn.Module = nn.Module.__new__(cls)
    nn.Module.__init__(copied)
    kept = {name: value for name, value in base.__dict__.items() if name not in _NOT_COPIED and "hook" not in name}
    copied.__dict__.update(copy.deepcopy(kept))
    modules = {name: module for name, module in base._modules.items() if name != "parametrizations"}
    copied._modules.update(copy.deepcopy(modules))
    tensors: dict[str, Any] = dict(base._parameters)
    for name in base.parametrizations if parametrize.is_parametrized(base) else ():  # type: ignore[union-attr]
        tensors[name] = parametrizations_of(base, name).original
    for name, tensor in tensors.items():
        empty = None if tensor is None else nn.Parameter(torch.zeros(tensor.shape, dtype=torch.float64))
        copied._parameters[name] = empty
    return copied.to("cpu", torch.float64).eval()


def _fill(module: nn.Module, generator: torch.Generator) -> None:
    """Random numbers for every parameter, wherever its constructor put it (``meta``, float32)."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                value = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                part._parameters[name] = nn.Parameter(value)
