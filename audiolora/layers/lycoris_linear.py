"""PEFT's LoHa and LoKr on an ``nn.Linear``, with a forward that ``torch.compile(fullgraph=True)`` trains.

PEFT draws a number for ``module_dropout`` at every step, be it zero or not, and branches on it, which ends a compiled
graph. Here nothing is drawn where nothing is dropped, and what is dropped is multiplied by zero.
"""

from typing import Any

import torch
from peft.tuners.loha.layer import Linear as PeftLoHaLinear
from peft.tuners.lokr.layer import Linear as PeftLoKrLinear


class _WithoutBranch:
    def forward(self: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self.disable_adapters or self.merged:
            result: torch.Tensor = super().forward(x, *args, **kwargs)  # type: ignore[misc]
            return result
        result = self.base_layer(x, *args, **kwargs)
        for name in self.active_adapters:
            if name not in self._available_adapters:
                continue
            delta = self._get_delta_activations(name, x, *args, **kwargs)
            if self.training and self.module_dropout[name]:
                delta = delta * (torch.rand(1) > self.module_dropout[name]).to(delta)
            result = result + delta
        return result.to(x.dtype)


class LoHaLinear(_WithoutBranch, PeftLoHaLinear):
    """PEFT's layer; see the module's text."""


class LoKrLinear(_WithoutBranch, PeftLoKrLinear):
    """PEFT's layer; see the module's text."""


_OURS: dict[type, type] = {PeftLoHaLinear: LoHaLinear, PeftLoKrLinear: LoKrLinear}


def compilable(layer: Any) -> Any:
    """PEFT's layer for a Linear, made into one of the classes above; any other as it is."""
    layer.__class__ = _OURS.get(type(layer), type(layer))
    return layer
