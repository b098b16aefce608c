"""What torch gives: the adapted network itself, with one adapter or none."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import numpy as np
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from audiolora.export.parts import Part
from audiolora.export.slots import inner_network


class Reference:
    """The adapted network itself, run by torch with one adapter or none.

    Args:
        twin: from `slots.copied`, adapters in it; it is copied once more.
    """

    def __init__(self, twin: nn.Module) -> None:
        self.net = inner_network(copy.deepcopy(twin))

    def __call__(self, part: Part, inputs: Mapping[str, torch.Tensor], adapter: str | None) -> tuple[np.ndarray, ...]:
        """The outputs of a part, as arrays.

        Raises:
            ValueError: the network gives something else than a tensor or a tuple of tensors.
        """
        with torch.no_grad():
            found = part.made(self.switched(adapter))(*inputs.values())
        outputs = found if isinstance(found, (tuple, list)) else (found,)
        if not all(isinstance(y, torch.Tensor) for y in outputs):
            raise ValueError(
                f"{type(self.net).__name__} gives a {type(found).__name__}, and a graph gives a tensor or a tuple of "
                "tensors; wrap the network in a module that returns them"
            )
        return tuple(y.numpy() for y in outputs)

    def switched(self, adapter: str | None) -> nn.Module:
        """The network with this adapter on, or with none, until the next call."""
        for module in self.net.modules():
            if isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper)):
                _switch(module, adapter)
        return self.net


def _switch(module: BaseTunerLayer | AuxiliaryTrainingWrapper, adapter: str | None) -> None:
    if isinstance(module, BaseTunerLayer):
        on = adapter is not None and adapter in module._get_available_adapters()
    else:
        on = adapter is not None and adapter in module._adapters
    module.enable_adapters(on)
    if on:
        module.set_adapter([adapter] if isinstance(module, BaseTunerLayer) else adapter)
