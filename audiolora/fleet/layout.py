"""What one device of a fleet has of its own: read off the model that PEFT makes of the same network and config.

So a fleet's tensors are PEFT's: targets, ranks, scalings, starting values and the keys of the adapter file. The network
is given back as it was.
"""

import copy
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners.lora import Linear as PeftLinear
from peft.tuners.lora.layer import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from torch import nn

from audiolora.all_or_nothing import undone_on_error
from audiolora.integration import enabled
from audiolora.layers.lora import LoraConv1d
from audiolora.layers.stacked import MODULES

_ADAPTER = "default"
_PREFIX = "base_model.model."


@dataclass(frozen=True)
class Slot:
    """One tensor that every device has.

    Args:
        key: its name in ``adapter_model.safetensors``.
        shape: as PEFT has it, without the devices.
        path: of the module in the network.
        role: ``A``, ``B``, ``magnitude``, ``lora_bias``, ``weight`` or ``bias``.
        offset: of its first element in a device's row.
    """

    key: str
    shape: tuple[int, ...]
    path: str
    role: str
    offset: int

    @property
    def size(self) -> int:
        """Elements."""
        return prod(self.shape)


@dataclass(frozen=True)
class Layout:
    """The slots of a row, one after the other, and the row that every device starts from.

    Args:
        config: as PEFT saves it beside such an adapter.
        slots: in the order of the row.
        scaling: s of each adapted module.
        start: (P,) float32.
    """

    config: LoraConfig
    slots: tuple[Slot, ...]
    scaling: dict[str, float] = field(repr=False)
    start: torch.Tensor = field(repr=False)

    @cached_property
    def sizes(self) -> list[int]:
        """Elements of each slot."""
        return [slot.size for slot in self.slots]

    @cached_property
    def modules(self) -> dict[str, dict[str, int]]:
        """Module path → role → number of the slot."""
        found: dict[str, dict[str, int]] = {}
        for i, slot in enumerate(self.slots):
            found.setdefault(slot.path, {})[slot.role] = i
        return found

    def unpack(self, row: torch.Tensor) -> dict[str, torch.Tensor]:
        """A device's row (P,) as the tensors of its adapter file."""
        parts = row.split(self.sizes)
        return {slot.key: part.view(slot.shape) for slot, part in zip(self.slots, parts, strict=True)}


class _Read(Exception):
    """Everything is read: what was put into the network goes out again."""


def read_layout(net: nn.Module, config: LoraConfig, seed: int) -> Layout:
    """The layout of an adapter with ``config`` on ``net``.

    Args:
        net: the frozen network; it is as it was afterwards.
        config: PEFT's; it stays as it is.
        seed: for the starting values, drawn as PEFT draws them after ``torch.manual_seed(seed)``.

    Raises:
        ValueError: what PEFT or audiolora refuses of the config, dropout, a module that a fleet has no form of.
        TypeError: the network is adapted already, or the config is not a ``LoraConfig``.
    """
    if not isinstance(config, LoraConfig):
        raise TypeError(f"a fleet takes a peft.LoraConfig, got {type(config).__name__}")
    if any(isinstance(module, (PeftModel, BaseTunerLayer)) for module in net.modules()):
        raise TypeError("the network is adapted already; unload() it first: a fleet puts its own adapters in")
    if config.lora_dropout:
        raise ValueError(
            f"lora_dropout={config.lora_dropout}: a fleet trains without dropout, so that each device's training is a "
            "function of its own data and seed; set lora_dropout=0, and pull the adapters toward their start instead"
        )
    config, found = copy.deepcopy(config), []
    before = net.__dict__.get("peft_config")
    devices = sorted({p.device.index or 0 for p in net.parameters() if p.device.type == "cuda"})
    try:
        with enabled(), torch.random.fork_rng(devices), undone_on_error(net, _ADAPTER):
            torch.manual_seed(seed)
            model = get_peft_model(net, config, adapter_name=_ADAPTER)
            found.append(_read(model))
            raise _Read
    except _Read:
        pass
    finally:
        if before is None:
            net.__dict__.pop("peft_config", None)
    return found[0]


def _read(model: PeftModel) -> Layout:
    roles = {id(parameter): (path, role) for path, role, parameter in _roles(model)}
    # bias="all" also unfreezes what modules_to_save has put aside.
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad and ".original_module." not in name]
    names = {id(parameter): name for name, parameter in trained}
    strange = [name.removeprefix(_PREFIX) for key, name in names.items() if key not in roles]
    if strange:
        raise ValueError(
            f"{', '.join(strange)}: a fleet has no form of this tensor for each device (it has LoRA on Conv1d, "
            "ConvTranspose1d and Linear, such modules in modules_to_save, and biases); leave it out of the config"
        )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*have invalid shape")  # PEFT takes lora_bias for a torn shard
        state = get_peft_model_state_dict(model)
    files = {value.data_ptr(): (key, value) for key, value in state.items()}
    slots, values, offset = [], [], 0
    for _, parameter in trained:
        key, value = files[parameter.data_ptr()]
        slots.append(Slot(key, tuple(value.shape), *roles[id(parameter)], offset))
        values.append(value.detach().to(torch.float32).flatten())
        offset += value.numel()
    scaling = {path: float(layer.scaling[_ADAPTER]) for path, layer in _adapted(model)}
    return Layout(model.peft_config[_ADAPTER], tuple(slots), scaling, torch.cat(values))


def _roles(model: PeftModel) -> Iterator[tuple[str, str, nn.Parameter]]:
    """Path, role and parameter of everything that a device may have of its own."""
    for path, layer in _adapted(model):
        base = layer.get_base_layer()
        if not isinstance(layer, (LoraConv1d, PeftLinear)) or not isinstance(base, MODULES):
            raise ValueError(
                f"{path}: a fleet adapts nn.Conv1d, nn.ConvTranspose1d and nn.Linear, and this is a "
                f"{type(base).__name__}; leave it out of target_modules"
            )
        if _ADAPTER in getattr(layer, "lora_core", ()):
            raise ValueError(f"{path}: a fleet trains A and B, not Tucker factors; take conv_factors='shared'")
        yield path, "A", layer.lora_A[_ADAPTER].weight
        yield path, "B", layer.lora_B[_ADAPTER].weight
        if layer.lora_B[_ADAPTER].bias is not None:
            yield path, "lora_bias", layer.lora_B[_ADAPTER].bias
        if _ADAPTER in layer.lora_magnitude_vector:
            yield path, "magnitude", layer.lora_magnitude_vector[_ADAPTER].weight
    for name, module in model.named_modules():
        path = name.removeprefix(_PREFIX).removesuffix(".base_layer")
        if isinstance(module, ModulesToSaveWrapper):
            yield from _saved(path, module.modules_to_save[_ADAPTER])
        elif not _is_of_peft(name) and isinstance(module._parameters.get("bias"), nn.Parameter):
            yield path, "bias", module._parameters["bias"]


def _is_of_peft(name: str) -> bool:
    return any(part == "modules_to_save" or part.startswith("lora_") for part in name.split("."))


def _saved(path: str, module: nn.Module) -> Iterator[tuple[str, str, nn.Parameter]]:
    own = {name for name, _ in module.named_parameters()}
    if not isinstance(module, MODULES) or not own <= {"weight", "bias"}:
        raise ValueError(
            f"{path}: in modules_to_save a fleet takes plain nn.Conv1d, nn.ConvTranspose1d and nn.Linear, and this is "
            f"a {type(module).__name__} with {', '.join(sorted(own))}"
        )
    for name, parameter in module.named_parameters():
        yield path, name, parameter


def _adapted(model: PeftModel) -> Iterator[tuple[str, Any]]:
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            yield name.removeprefix(_PREFIX), module
