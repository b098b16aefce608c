"""PEFT's mixed batches: each sample through the adapter that ``adapter_names`` gives it (``"__base__"``: none).

PEFT hands the names to every layer's forward by a hook. Our layers set them on the weight (`BatchedWeight`), so that
one convolution serves the batch. A forward that derives its weight or folds its batch cannot take such a weight; it is
run once for each adapter. A model that reads a convolution's weight without calling the layer, or calls one convolution
from two places, gets the names from the hook all the same: else the active adapter would answer for all samples.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from audiolora.conv.batched import Adapter, PerSampleWeightError

if TYPE_CHECKING:
    from audiolora.layers.base import WeightSpaceLayer

Samples = tuple[list["Adapter | None"], list[int]]
"""The adapters in a batch, None for the base alone, and sample → index into them."""


def mixed_batch(
    layer: WeightSpaceLayer, x: torch.Tensor, *args: Any, adapter_names: Sequence[str], **kwargs: Any
) -> torch.Tensor:
    """The layer's forward with an adapter for each sample of x (N, …).

    Raises:
        ValueError: x has no batch, or not one sample a name; or adapters are merged.
    """
    if x.dim() < (2 if isinstance(layer.get_base_layer(), nn.Linear) else 3):
        raise ValueError(f"adapter_names need a batch, and this input of shape {tuple(x.shape)} has none")
    if len(adapter_names) != len(x):
        raise ValueError(f"adapter_names must name one adapter a sample: {len(adapter_names)} names, {len(x)} samples")
    if layer.merged:
        raise ValueError("adapter_names cannot be used while adapters are merged; call unmerge_adapter() first")
    names = _known(layer, adapter_names)
    samples = _samples(layer, names)
    if samples is not None:
        layer._samples = samples
        try:
            return layer.base_layer(x, *args, **kwargs)
        except PerSampleWeightError:
            pass  # a forward that derives its weight, or folds the batch: one pass for each adapter
        finally:
            layer._samples = None
    result: torch.Tensor | None = None
    for name in dict.fromkeys(names):
        rows = torch.tensor([i for i, each in enumerate(names) if each == name], device=x.device)
        with layer._with_only(() if name == "__base__" else (name,)):
            part = layer.base_layer(x[rows], *args, **kwargs)
        result = part.new_empty(len(x), *part.shape[1:]) if result is None else result
        result = result.index_copy(0, rows, part)
    if result is None:  # no sample
        with layer._with_only(()):
            return layer.base_layer(x, *args, **kwargs)
    return result


def samples_outside_of_forward(layer: WeightSpaceLayer) -> Samples | None:
    """What the layer's weight is a mixture of for somebody who reads it past the layer's forward; None if of nothing.

    Raises:
        ValueError: adapters are merged, or one has no form for a batch.
    """
    hooks = layer._forward_pre_hooks
    if not hooks or layer._only is not None or layer.disable_adapters:
        return None
    given = [hook.keywords for hook in hooks.values() if isinstance(hook, functools.partial)]
    adapter_names = next((keywords["adapter_names"] for keywords in given if "adapter_names" in keywords), None)
    if adapter_names is None:
        return None
    if layer.merged:
        raise ValueError("adapter_names cannot be used while adapters are merged; call unmerge_adapter() first")
    names = _known(layer, adapter_names)
    samples = _samples(layer, names)
    if samples is None and set(names) != {"__base__"}:
        raise ValueError(
            f"{layer.path}: the model reads this weight without calling the layer, so adapter_names cannot be followed "
            "one adapter at a time; run each adapter's samples by themselves, after set_adapter()"
        )
    return samples or ([None], [0] * len(names))


def _known(layer: WeightSpaceLayer, adapter_names: Sequence[str]) -> list[str]:
    """The base for adapters that are elsewhere in the model."""
    known = layer._get_available_adapters()
    return [name if name in known else "__base__" for name in adapter_names]


def _samples(layer: WeightSpaceLayer, names: Sequence[str]) -> Samples | None:
    """None where there is no adapter among the names, or one that has no form for a batch."""
    unique = list(dict.fromkeys(names))
    adapters = {name: layer.batched_adapter(name) for name in unique if name != "__base__"}
    if not adapters or None in adapters.values():
        return None
    return [adapters.get(name) for name in unique], [unique.index(name) for name in names]
