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
        self.took_part = False
        self._weight: Stack | torch.Tensor | None = None
        self._bias: torch.Tensor | None = None
        self._bias_scaling: float | None = None
        self._batch = 0
        self._old_weight_norm, self._order, self._originals = False, list(base._parameters), {}
        self._cache = WeightCache()
        if "weight" in names:
            self.attach()
        if "bias" in names:
            self.map_tensor("bias")

    @property
    def transposed_groups(self) -> int | None:
        """As in `conv.factors.LowRank`."""
        return self.base_layer.groups if isinstance(self.base_layer, nn.ConvTranspose1d) else None

    def set_devices(
        self,
        weight: Stack | torch.Tensor | None,
        bias: torch.Tensor | None,
        batch: int,
        bias_scaling: float | None = None,
    ) -> None:
        """What the module's tensors are from now on.

        Args:
            weight: the factors of n devices, their own weights (n, *W.shape), or None.
            bias: (n, C), or None.
            batch: samples in the batch, the same number of each device.
            bias_scaling: s where ``bias`` is ``lora_bias``, b + s·b_d; None where it is the bias itself.
        """
        self._weight, self._bias, self._batch, self._bias_scaling = weight, bias, batch, bias_scaling

    def clear_devices(self) -> None:
        """Back to the base's own tensors."""
        self._weight = self._bias = None

    def mapped(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        if name == "bias":
            if self._bias is None:
                return tensor
            self.took_part = True
            values = self._bias if self._bias_scaling is None else tensor + self._bias * self._bias_scaling
            return StackedBias.make(tensor, values, self._batch)
        if self._weight is None:
            return tensor
        self.took_part = True
        return StackedWeight.make(tensor, self._weight, self._batch, self.transposed_groups)

    def detach_map(self) -> nn.Module:
        if parametrize.is_parametrized(self.base_layer):
            return super().detach_map()
        return self.base_layer
