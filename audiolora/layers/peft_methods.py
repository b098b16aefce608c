"""Functions of PEFT that know its own layers alone, as they are with ours beside them.

``audiolora.enable()`` puts each in the place of PEFT's, which it calls for everything that is not ours.
"""

from collections.abc import Iterator, Sequence
from typing import Any, TypeGuard

import torch
from peft import LoraConfig, PeftConfig
from peft.tuners.lora import loraga
from peft.tuners.lora import model as lora_model
from peft.tuners.lora.model import LoraModel
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import hotswap, save_and_load
from peft.utils.other import ModulesToSaveWrapper
from torch import nn

from audiolora.layers.any_convolution import STOCK, has_convolution_weight
from audiolora.layers.base import WeightSpaceLayer
from audiolora.layers.combination import check_combination, combine_adapters
from audiolora.layers.hotswap import fitted, pad_ranks, settle
from audiolora.layers.lora import LoraConv1d
from audiolora.layers.lora_linear import LoraLinear
from audiolora.layers.quantized import dequantize_weight, quantization_of

_peft_target_exists = BaseTuner._check_target_module_exists
_peft_add_weighted_adapter = LoraModel.add_weighted_adapter
_peft_combine_by_svd = LoraModel._svd_generalized_task_arithmetic_weighted_adapter
_peft_combine_factors = LoraModel._generalized_task_arithmetic_weighted_adapter
_peft_key_to_original_key = save_and_load._peft_key_to_original_key
_peft_get_device_map = lora_model.get_device_map
_peft_update_saved = ModulesToSaveWrapper.update
_peft_modules_with_gradients = loraga.get_target_modules
_peft_pad_lora_weights = hotswap._pad_lora_weights
_peft_hotswap = hotswap.hotswap_adapter_from_state_dict


def convolutions_of(model: nn.Module) -> dict[str, LoraConv1d]:
    """Our layers by the paths that PEFT's keys have, compiled or not."""
    return {
        name.removeprefix("_orig_mod."): module for name, module in model.named_modules() if _is_convolution(module)
    }


def _is_convolution(module: nn.Module) -> TypeGuard[LoraConv1d]:
    return isinstance(module, LoraConv1d) and not isinstance(module, LoraLinear)  # PEFT combines that one rightly


def target_exists(config: PeftConfig, key: str) -> Any:
    """PEFT's, of modules alone: "0" also names x.0.parametrizations.weight.0, a part of a weight."""
    return False if ".parametrizations." in key else _peft_target_exists(config, key)


def add_weighted_adapter(
    self: LoraModel,
    adapters: list[str],
    weights: Sequence[float],
    adapter_name: str,
    combination_type: str = "svd",
    svd_rank: int | None = None,
    svd_clamp: float | None = None,
    svd_full_matrices: bool = True,
    svd_driver: str | None = None,
    density: float | None = None,
    majority_sign_method: str = "total",
) -> None:
    """PEFT's ``add_weighted_adapter``; what our layers make of it is told in `audiolora.layers.combination`."""
    layers = convolutions_of(self)
    known = adapter_name in self.peft_config
    if layers and not known:
        check_combination(layers, adapters, weights, combination_type, density)
    rest = (svd_rank, svd_clamp, svd_full_matrices, svd_driver, density, majority_sign_method)
    try:
        _peft_add_weighted_adapter(self, adapters, weights, adapter_name, combination_type, *rest)
        if not known:
            kind = combination_type if len(adapters) > 1 else "linear"
            options = {"density": density, "majority_sign_method": majority_sign_method}
            options |= {"svd_clamp": svd_clamp, "svd_driver": svd_driver} if kind.endswith("svd") else {}
            combine_adapters(layers, adapters, weights, adapter_name, kind, **options)
    except Exception:
        if not known and adapter_name in self.peft_config:
            self.delete_adapter(adapter_name)  # half made
        raise


def _combine_by_svd(
    self: LoraModel,
    combination_type: str,
    adapters: Any,
    weights: Any,
    new_rank: int,
    target: nn.Module,
    A: torch.Tensor,
    B: torch.Tensor,
    *args: Any,
    **kwargs: Any,
) -> Any:
    if _is_convolution(target):
        return A.data, B.data  # `combine_adapters` fills them
    return _peft_combine_by_svd(self, combination_type, adapters, weights, new_rank, target, A, B, *args, **kwargs)


def _combine_factors(
    self: LoraModel, combination_type: str, adapters: Any, weights: Any, target: nn.Module, *args: Any
) -> Any:
    if _is_convolution(target):
        holder = next(name for name in adapters if name in target.lora_A)
        return target.lora_A[holder].weight.data, target.lora_B[holder].weight.data  # `combine_adapters` fills them
    return _peft_combine_factors(self, combination_type, adapters, weights, target, *args)


def _pad_lora_weights(model: nn.Module, target_rank: int) -> bool:
    layers = convolutions_of(model)
    pad_ranks(layers, target_rank)
    return _peft_pad_lora_weights(model, target_rank) or bool(layers)


def hotswap_adapter_from_state_dict(
    model: nn.Module,
    state_dict: dict[str, torch.Tensor],
    adapter_name: str,
    config: LoraConfig,
    parameter_prefix: str = "lora_",
) -> None:
    """PEFT's function of this name; what our layers make of it is told in `audiolora.layers.hotswap`."""
    layers = convolutions_of(model)
    merged = any(adapter_name in layer.merged_adapters for layer in layers.values())
    tensors = state_dict if merged else fitted(layers, state_dict, adapter_name)  # merged is PEFT's to refuse
    _peft_hotswap(model, tensors, adapter_name, config, parameter_prefix)
    settle(layers, tensors, adapter_name, config)


def _modules_with_gradients(model: nn.Module, config: LoraConfig) -> Iterator[tuple[str, nn.Module]]:
    """For LoRA-GA's ``preprocess_loraga``: PEFT's modules, and convolutions.

    Raises:
        ValueError: a convolution whose weight is computed, so that no gradient stays on it.
    """
    yield from _peft_modules_with_gradients(model, config)
    for name, module in model.named_modules():
        if not (isinstance(module, STOCK) or has_convolution_weight(module)):
            continue
        if LoraModel._check_target_module_exists(config, name):
            if not isinstance(module._parameters.get("weight"), nn.Parameter):
                raise ValueError(
                    f"{name}: its weight is computed (weight_norm, …), and LoRA-GA needs the gradient of a parameter; "
                    "take that off first, or leave the module to another start such as 'pissa'"
                )
            yield name, module


def _key_of_the_base(model: nn.Module, peft_key: str) -> str:
    """A tensor's name before adaptation, for PEFT's ``get_base_model_state_dict`` and ``set_base_model_state_dict``."""
    before, found, after = peft_key.rpartition(".parametrizations.")
    if found:
        inner: Any = model.base_model.model  # type: ignore[union-attr]
        layer = inner.get_submodule(before.removesuffix(".base_layer")) if before.endswith(".base_layer") else None
        if isinstance(layer, WeightSpaceLayer):
            peft_key = f"{before}.{layer.base_key(f'parametrizations.{after}')}"
    return _peft_key_to_original_key(model, peft_key)


def update_saved(self: ModulesToSaveWrapper, adapter_name: str, *args: Any, **kwargs: Any) -> None:
    """PEFT's; a head of the adapter's own is trained, so that its copy of a quantised one is float."""
    _peft_update_saved(self, adapter_name, *args, **kwargs)
    for module in self.modules_to_save[adapter_name].modules():
        if quantization_of(module) is not None:
            dequantize_weight(module)
            module.weight.requires_grad_(adapter_name in self.active_adapters)


def get_device_map(model: nn.Module) -> dict[str, Any]:
    """PEFT's, which asks the first parameter: a model that is quantised throughout may have buffers alone."""
    if any(True for _ in model.parameters()):
        found: dict[str, Any] = _peft_get_device_map(model)
        return found
    return {"": next((buffer.device for buffer in model.buffers()), torch.device("cpu"))}


REPLACEMENTS: tuple[tuple[Any, str, Any], ...] = (
    (BaseTuner, "_check_target_module_exists", staticmethod(target_exists)),
    (LoraModel, "add_weighted_adapter", add_weighted_adapter),
    (LoraModel, "_svd_generalized_task_arithmetic_weighted_adapter", _combine_by_svd),
    (LoraModel, "_generalized_task_arithmetic_weighted_adapter", _combine_factors),
    (lora_model, "get_device_map", get_device_map),
    (ModulesToSaveWrapper, "update", update_saved),
    (hotswap, "_pad_lora_weights", _pad_lora_weights),
    (hotswap, "hotswap_adapter_from_state_dict", hotswap_adapter_from_state_dict),
    (loraga, "get_target_modules", _modules_with_gradients),
    (save_and_load, "_peft_key_to_original_key", _key_of_the_base),
)
"""Where PEFT looks a function up, its name there, and ours."""
