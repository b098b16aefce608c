"""``init_lora_weights`` on convolutions: starts that come from the base's weight, and the base that is left then.

The equations and papers are in `audiolora.conv.starts`, on the kernel as the matrix (C_out, C_in/g · k). PiSSA, OLoRA
and LoRA-GA take their start out of the base, W ← W - s·B·A; LoftQ leaves the quantised weight there. What the network
computes stays (LoftQ: nearly). ``save_pretrained(path_initial_model_for_weight_conversion=…)`` makes of such an adapter
one of rank 2·r over the untouched base, as PEFT has it.

What cannot be served is refused before the weight is touched; after an error in a later module every weight that was
corrected is put back (`audiolora.all_or_nothing`).
"""

from typing import Any

import torch
from peft import LoraConfig
from torch import nn

from audiolora.conv import starts
from audiolora.conv.factors import as_kernel, stored
from audiolora.layers.any_convolution import channels_of
from audiolora.layers.quantized import quantization_of
from audiolora.layers.weight_norm import is_close, parametrizations_of

RANDOM = (True, False, "gaussian", "orthogonal", "eva")
"""Starts that leave the base alone; of ``eva`` see `audiolora.layers.eva`."""

CORRECTING = ("pissa", "olora", "loftq", "lora_ga")
"""Starts that the base is corrected for."""


def kind_of(config: LoraConfig) -> object:
    """``"pissa"`` for ``"pissa_niter_4"``, and any other start as it is."""
    init = config.init_lora_weights
    if not isinstance(init, str):
        return init
    return "pissa" if init.lower().startswith("pissa") else init.lower()


def refused(config: LoraConfig, r: int, base: nn.Module, others: bool) -> str | None:
    """Why this start cannot be served on this convolution, or None.

    Args:
        config: the adapter's.
        r: its rank on this module.
        base: the convolution.
        others: whether the layer has other adapters.
    """
    kind, said = kind_of(config), f"init_lora_weights={config.init_lora_weights!r}"
    if kind not in (*RANDOM, *CORRECTING):
        return f"{said} is not defined for a convolution here; use one of {(*RANDOM, *CORRECTING)}"
    if kind == "eva" and isinstance(base, nn.ConvTranspose1d):
        return (
            f"{said} needs the window under a kernel, which a transposed convolution's input is not; use 'pissa', or "
            "leave the module to another adapter"
        )
    if kind == "orthogonal" and r % 2:
        return f"{said} needs an even rank, got r={r}; try r={r + 1}"
    if kind not in CORRECTING:
        return None
    if others:
        return (
            f"{said} changes the base, and with it what the adapters that are there compute; give it to the model "
            "first, or convert it with path_initial_model_for_weight_conversion and load that"
        )
    if isinstance(base, nn.Linear):
        least = min(base.out_features, base.in_features)
    else:
        channels = channels_of(base)
        least = min(channels.out_channels, channels.in_per_group * channels.kernel_size)
    most = least // 2 if kind == "lora_ga" else least
    if r > most:
        return f"{said} finds at most {most} directions in a kernel of rank {least}, got r={r}; try r={max(1, most)}"
    return _setting_refused(config, kind, said, base)


def _setting_refused(config: LoraConfig, kind: object, said: str, base: nn.Module) -> str | None:
    if any(parameter.is_meta for parameter in base.parameters()):
        return f"{said} decomposes the weight, which is on meta; load the base's weights first"
    if kind == "pissa" and config.init_lora_weights != "pissa" and _niter(config) is None:
        return f"{said} must be 'pissa' or 'pissa_niter_N' with N of at least 1"
    if kind == "loftq" and config.loftq_config.get("loftq_bits") not in (4, 8):
        return f"{said} quantises to 4 or 8 bits, got loftq_bits={config.loftq_config.get('loftq_bits')!r}"
    if kind == "loftq" and config.loftq_config.get("loftq_iter", 0) < 1:
        return f"{said} needs loftq_iter of at least 1, got {config.loftq_config.get('loftq_iter')!r}"
    if kind == "lora_ga" and (config.lora_ga_config is None or not hasattr(base, "_peft_loraga_grad")):
        return (
            f"{said} needs lora_ga_config and a gradient; run peft.tuners.lora.preprocess_loraga on the model first. A "
            "saved adapter is loaded over the untouched base once it was saved with "
            "path_initial_model_for_weight_conversion"
        )
    return None


def _niter(config: LoraConfig) -> int | None:
    """N of ``"pissa_niter_N"``."""
    _, found, niter = str(config.init_lora_weights).partition("_niter_")
    return int(niter) if found and niter.isdigit() and int(niter) > 0 else None


@torch.no_grad()
def start(layer: Any, adapter: str, config: LoraConfig) -> None:
    """Give an adapter's factors their start, and correct the base for it.

    Args:
        layer: a `LoraConv1d`.
        adapter: its adapter, with factors of any value.
        config: the adapter's; `refused` has nothing against it.

    Raises:
        ValueError: the base's parametrization cannot hold the corrected weight.
    """
    kind, base = kind_of(config), layer.get_base_layer()
    if kind in (True, False, "gaussian", "eva"):
        return
    holders, r, s = (layer.lora_A[adapter], layer.lora_B[adapter]), layer.r[adapter], float(layer.scaling[adapter])
    groups = base.groups if isinstance(base, nn.ConvTranspose1d) else None
    kernel = as_kernel(layer.base_tensor().detach(), groups)
    W = kernel.flatten(1)
    left = None
    if kind == "orthogonal":
        A, B = starts.orthogonal(W.shape[0], W.shape[1], r)
    elif kind == "pissa":
        A, B = starts.principal(W, r, s, _niter(config))
    elif kind == "olora":
        A, B = starts.first_columns(W, r)
    elif kind == "loftq":
        bits, iterations = config.loftq_config["loftq_bits"], config.loftq_config["loftq_iter"]
        A, B, left = starts.of_quantisation(W, r, s, bits, iterations)
    else:
        settings = config.lora_ga_config
        gradient = as_kernel(base._peft_loraga_grad, groups).flatten(1)
        A, B = starts.of_gradient(gradient, W, r, s, settings.direction, settings.scale, settings.stable_gamma)
        del base._peft_loraga_grad
    A, B = A.to(kernel.dtype), B.to(kernel.dtype)  # the base gives up what the factors hold, roundings and all
    if kind in CORRECTING:
        left = W.double() - s * (B.double() @ A.double()) if left is None else left
        _correct(layer, stored(left.view(kernel.shape), groups).to(kernel.dtype))
    for holder, value in zip(holders, (A, B), strict=True):
        if not holder.weight.is_meta:  # else a file's values are about to come
            holder.weight.copy_(value.reshape(holder.weight.shape))


def _correct(layer: Any, weight: torch.Tensor) -> None:
    """Make this the base's own weight, through weight norm if it has one.

    The old values' storage is left alone, so that whoever holds it can put it back.
    """
    base = layer.get_base_layer()
    if quantization_of(base) is not None:
        raise ValueError(
            f"{layer.path}: this start corrects the base's weight, which is quantised; take init_lora_weights=True or "
            "'gaussian', or audiolora.dequantize(model) first"
        )
    chain = parametrizations_of(base, "weight")
    with layer._with_only(()):
        if len(chain) == 1:
            chain.original.data = weight
        else:
            base.weight = weight
        layer._cache.clear()
        if not is_close(base.weight, weight):
            raise ValueError(
                f"{layer.path}: its parametrization cannot hold the corrected weight; take it off with "
                "torch.nn.utils.parametrize.remove_parametrizations, or take init_lora_weights=True"
            )
