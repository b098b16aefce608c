"""Whether an adapter's tensors fit the model, asked before any of them is loaded.

torch names shapes that differ, one module of many and never the keys that are missing, which then keep their start
values in silence. Here every tensor that does not fit is named, in one error.
"""

from collections.abc import Mapping
from typing import Any

import torch
from peft.utils import save_and_load
from torch import nn

from audiolora.layers.base import WeightSpaceLayer

_set_peft_model_state_dict = save_and_load.set_peft_model_state_dict
_PREFIX = "base_model.model."
_MOST_LINES = 40
_FACTORS = (".lora_", ".hada_", ".lokr_")
"""In the names of PEFT's tensors: LoRA's, LoHa's, LoKr's."""


def misfits(model: nn.Module, tensors: Mapping[str, torch.Tensor], adapter_name: str) -> list[str]:
    """A line for each of the adapter's factors that the model and the file do not agree on.

    Args:
        model: with the adapter injected, its values those of the start.
        tensors: as in ``adapter_model.safetensors``: keys without the adapter's name.
        adapter_name: PEFT's name for it in ``model``.
    """
    found = {_without_prefix(key): tuple(tensor.shape) for key, tensor in tensors.items()}
    # A state dict that is given is not searched for shapes of a sharded training, among them lora_bias's.
    own = save_and_load.get_peft_model_state_dict(
        model, state_dict=model.state_dict(), adapter_name=adapter_name, save_embedding_layers=False
    )
    wanted = {_without_prefix(key): tuple(tensor.shape) for key, tensor in own.items()}
    lines = []
    for key in sorted(found.keys() | wanted.keys()):
        if not any(factor in key for factor in _FACTORS):
            continue
        if key not in wanted:
            lines.append(f"{key}: the adapter has {found[key]}, the model has no such tensor")
        elif key not in found:
            lines.append(f"{key}: the adapter has no such tensor, the model needs {wanted[key]}")
        elif found[key] != wanted[key]:
            lines.append(f"{key}: the adapter has {found[key]}, the model needs {wanted[key]}")
    return lines


def _without_prefix(key: str) -> str:
    """Keys as they are within the base model; older files name DoRA's magnitude without ``.weight``."""
    key = key.removeprefix(_PREFIX).replace("_orig_mod.", "")
    return key + ".weight" if key.endswith("lora_magnitude_vector") else key


def set_peft_model_state_dict(
    model: nn.Module,
    peft_model_state_dict: dict[str, torch.Tensor],
    adapter_name: str = "default",
    ignore_mismatched_sizes: bool = False,
    **kwargs: Any,
) -> Any:
    """PEFT's, after a check of every tensor where an audiolora layer is among those adapted.

    Raises:
        ValueError: tensors that do not fit, all of them, with both shapes; nothing has been loaded.
    """
    ours = any(isinstance(module, WeightSpaceLayer) for module in model.modules())
    if ours and not ignore_mismatched_sizes:
        lines = misfits(model, peft_model_state_dict, adapter_name)
        if lines:
            more = [f"… and {len(lines) - _MOST_LINES} more"] if len(lines) > _MOST_LINES else []
            raise ValueError(
                f"adapter {adapter_name!r} does not fit this {_name_of(model)}: {len(lines)} of its tensors differ. "
                "Each must be there, in the shape that the model and the config's r and target_modules give; load it "
                "over the base model it was trained on, with its own adapter_config.json\n  "
                + "\n  ".join(lines[:_MOST_LINES] + more)
            )
    return _set_peft_model_state_dict(
        model,
        peft_model_state_dict,
        adapter_name=adapter_name,
        ignore_mismatched_sizes=ignore_mismatched_sizes,
        **kwargs,
    )


def _name_of(model: nn.Module) -> str:
    base = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
    return type(base).__name__
