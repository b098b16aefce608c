"""Hot-swapping on our layers: another adapter's tensors put in the place of one that is loaded, and perhaps compiled.

PEFT's ``peft.utils.hotswap`` pads and swaps the factors of Linear and Conv2d; a Conv1d it leaves or refuses.
A lower rank is the higher one with zero rows in A and zero columns in B, so the tensors keep their shapes and a
compiled graph stays valid. Also mended here, for our layers:

- DoRA's m is called ``lora_magnitude_vector`` in files and ``….weight`` in the model, which PEFT's swap does not know;
- a module that the new adapter leaves out becomes the base again, with m = ‖W‖; PEFT's m = 0 would silence it;
- the scaling follows ``rank_pattern`` and ``alpha_pattern``, which PEFT matches against a tensor's name.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from peft import LoraConfig
from peft.utils.other import get_pattern_key
from torch import nn

from audiolora.layers.lora import LoraConv1d

RANK_AXIS = {"lora_A.weight": 0, "lora_B.weight": 1}
FACTORS = ("lora_A.", "lora_B.", "lora_magnitude_vector.")


def pad_ranks(layers: Mapping[str, LoraConv1d], target_rank: int) -> None:
    """Pad every adapter's factors with zeros to ``target_rank``: the same function, with room for a larger adapter.

    Raises:
        ValueError: an adapter's rank is larger already; nothing is changed then.
    """
    for path, layer in layers.items():
        if len(layer.lora_core):
            raise ValueError(f"{path}: Tucker factors of adapters {list(layer.lora_core)} cannot be padded to a rank")
        for name, holder in layer.lora_A.items():
            if holder.weight.shape[0] > target_rank:
                raise ValueError(
                    f"{path}: adapter {name!r} has rank {holder.weight.shape[0]}, over target_rank={target_rank}; "
                    "target_rank must be the largest rank that will be swapped in"
                )
    for layer in layers.values():
        for holder in layer.lora_A.values():
            _replace(holder, _padded(holder.weight.detach(), (target_rank, *holder.weight.shape[1:])))
            holder.out_channels = target_rank
        for holder in layer.lora_B.values():
            _replace(holder, _padded(holder.weight.detach(), (holder.weight.shape[0], target_rank, 1)))
            holder.in_channels = target_rank


def _replace(holder: nn.Conv1d, value: torch.Tensor) -> None:
    holder.weight = nn.Parameter(value, requires_grad=holder.weight.requires_grad)


def _padded(tensor: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    padded = tensor.new_zeros(shape)
    padded[: tensor.shape[0], : tensor.shape[1]] = tensor
    return padded


def fitted(
    layers: Mapping[str, LoraConv1d], tensors: Mapping[str, torch.Tensor], adapter_name: str
) -> dict[str, torch.Tensor]:
    """The tensors to swap in under the model's names, those of our layers in the shapes that stand there.

    A rank above the one that stands there changes the shape there, unless the model was prepared for compilation.

    Args:
        layers: module path → layer.
        tensors: by PEFT's names with the adapter's in them.
        adapter_name: the adapter to be replaced.

    Raises:
        ValueError: tensors that fit no convolution here, or a rank above the one that the model was prepared for; all
            of them are named, and nothing is changed.
    """
    named = {
        f"{key}.weight" if key.endswith(f".lora_magnitude_vector.{adapter_name}") else key: tensor
        for key, tensor in tensors.items()
    }
    wrong: list[str] = []
    shapes: list[tuple[str, nn.Parameter, tuple[int, ...]]] = []
    for key, tensor in named.items():
        path, factor, _, kind = key.rsplit(".", 3) if key.count(".") >= 3 else ("", "", "", "")
        if path not in layers or adapter_name not in getattr(layers[path], factor, ()):
            continue  # PEFT's layer, or PEFT's error
        here = getattr(getattr(layers[path], factor)[adapter_name], kind)
        prepared = isinstance(layers[path].scaling[adapter_name], torch.Tensor)
        shape = _shape_for(tensor, here, RANK_AXIS.get(f"{factor}.{kind}"), may_grow=not prepared)
        if shape is None:
            wrong.append(f"{key} {tuple(tensor.shape)}, here {tuple(here.shape)}")
        else:
            shapes.append((key, here, shape))
    if wrong:
        raise ValueError(
            f"the adapter does not fit this model: {'; '.join(wrong)} (a higher rank than a model was prepared for "
            "needs prepare_model_for_compiled_hotswap with target_rank=the highest of all, before it is compiled)"
        )
    for key, here, shape in shapes:
        if here.shape != shape:  # the same function still, should PEFT refuse the swap
            here.grad, here.data = None, _padded(here.data, shape)
        if named[key].shape != shape:
            named[key] = _padded(named[key], shape)
    return named


def _shape_for(
    tensor: torch.Tensor, here: torch.Tensor, rank_axis: int | None, may_grow: bool
) -> tuple[int, ...] | None:
    """The shape in which the one can stand for the other: theirs, with the higher rank of the two; None if none can."""
    shape, present = list(tensor.shape), list(here.shape)
    if rank_axis is not None and len(shape) == len(present):
        higher = max(shape[rank_axis], present[rank_axis])
        shape[rank_axis] = higher
        if may_grow:
            present[rank_axis] = higher
    return tuple(shape) if shape == present else None


@torch.no_grad()
def settle(
    layers: Mapping[str, LoraConv1d], tensors: Mapping[str, torch.Tensor], adapter_name: str, config: LoraConfig
) -> None:
    """After PEFT's swap: each layer's scaling and rank, its base where the new adapter has nothing for it.

    Args:
        layers: module path → layer.
        tensors: what `fitted` gave.
        adapter_name: the adapter that was replaced.
        config: of the new adapter.
    """
    for path, layer in layers.items():
        if adapter_name not in layer.lora_A:
            continue
        for name, parameter in layer.named_parameters():
            if name.startswith(FACTORS) and name.split(".")[1] == adapter_name:
                # Once more, for PEFT wrote through .data, unseen by whoever watches a tensor's version.
                parameter.copy_(tensors.get(f"{path}.{name}", parameter))
        if f"{path}.lora_A.{adapter_name}.weight" in tensors:
            _set_scaling(path, layer, adapter_name, config)
        elif layer.use_dora[adapter_name]:
            with layer._with_only(()):  # ‖W‖, of the base as it is
                start = layer._start_magnitude(adapter_name)
            layer.lora_magnitude_vector[adapter_name].weight.copy_(start.view(1, -1, 1))


def _set_scaling(path: str, layer: LoraConv1d, adapter_name: str, config: LoraConfig) -> None:
    r: int = config.rank_pattern.get(get_pattern_key(config.rank_pattern.keys(), path), config.r)
    alpha: Any = config.alpha_pattern.get(get_pattern_key(config.alpha_pattern.keys(), path), config.lora_alpha)
    scaling = alpha / (math.sqrt(r) if config.use_rslora else r)
    layer.r[adapter_name], layer.lora_alpha[adapter_name] = r, alpha
    if isinstance(layer.scaling[adapter_name], torch.Tensor):
        layer.scaling[adapter_name].fill_(scaling)  # the compiled graph reads this tensor
    else:
        layer.scaling[adapter_name] = scaling
