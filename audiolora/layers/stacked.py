"""The map of a fleet on one module: its weight and bias for whichever devices the batch is of.

Nothing is put into the network but parametrizations on the tensors that differ from device to device: the modules stay
where and what they are, so that any forward runs as it is. With no devices set, they are the base's own tensors.
"""

import torch
from torch import nn
from torch.nn.utils import parametrize

from audiolora.conv.stacked import Stack
from audiolora.conv.stacked_weight import StackedBias, StackedWeight
from audiolora.layers.base import WeightSpaceLayer
from audiolora.layers.cache import WeightCache

MODULES = (nn.Conv1d, nn.ConvTranspose1d, nn.Linear)
"""Whose weights may differ from device to device."""


class Devices:
    """The devices that a module's tensors are of at the moment; set at every pass, so no module's slow attributes.

    Args:
        weight: the factors of n devices, their own weights (n, *W.shape), or None for the base's own.
        bias: (n, C), or None.
        bias_scaling: s where ``bias`` is ``lora_bias``, b + s·b_d; None where it is the bias itself.
        batch: samples in the batch, the same number of each device.
        took_part: whether a forward has ever asked for them.
    """

    __slots__ = ("batch", "bias", "bias_scaling", "took_part", "weight")

    def __init__(self) -> None:
        self.weight: Stack | torch.Tensor | None = None
        self.bias: torch.Tensor | None = None
        self.bias_scaling: float | None = None
        self.batch = 0
        self.took_part = False


class StackedLayer(WeightSpaceLayer):
    """Holds a module without standing in its place.

    Args:
        base: the module.
        path: its name in the network.
        names: which of ``"weight"`` and ``"bias"`` differ from device to device.

    Raises:
        ValueError: the weight is recomputed by something that is no parametrization (`WeightSpaceLayer.attach`).
    """

    def __init__(self, base: nn.Module, path: str, names: tuple[str, ...]) -> None:
        nn.Module.__init__(self)
        self.base_layer, self.path = base, path
        self.transposed_groups = base.groups if isinstance(base, nn.ConvTranspose1d) else None
        self.now = Devices()
        self._old_weight_norm, self._order, self._originals = False, list(base._parameters), {}
        self._cache = WeightCache()
        if "weight" in names:
            self.attach()
        if "bias" in names:
            self.map_tensor("bias")

    def mapped(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        now = self.now
        if name == "bias":
            if now.bias is None:
                return tensor
            now.took_part = True
            values = now.bias if now.bias_scaling is None else tensor + now.bias * now.bias_scaling
            return StackedBias.make(tensor, values, now.batch)
        if now.weight is None:
            return tensor
        now.took_part = True
        return StackedWeight.make(tensor, now.weight, now.batch, self.transposed_groups)

    def detach_map(self) -> nn.Module:
        if parametrize.is_parametrized(self.base_layer):
            return super().detach_map()
        return self.base_layer
