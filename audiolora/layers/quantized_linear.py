"""PEFT's LoRA on a quantised ``nn.Linear``: its forward is right as it is, its merge would be lost in silence.

PEFT adds ΔW to ``base_layer.weight.data``, and of a quantised module that is a tensor made for the occasion.
"""

from typing import Any

from peft.tuners.lora.layer import Linear
from torch import nn

from audiolora.layers.quantized import quantization_of, refuse_merge


class LoraOnQuantizedLinear(Linear):
    """PEFT's layer, whose base's weight is kept in few bits until `audiolora.dequantize`."""

    path: str

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """As PEFT's once the base is float again.

        Raises:
            ValueError: it is quantised.
        """
        refuse_merge(self.get_base_layer(), self.path)
        super().merge(safe_merge, adapter_names)


def refuses_merge(layer: Any, path: str) -> Any:
    """PEFT's layer for a Linear, made into one of the class above where its base is quantised."""
    base = layer.get_base_layer() if type(layer) is Linear else None
    if isinstance(base, nn.Linear) and quantization_of(base) is not None:
        layer.__class__ = LoraOnQuantizedLinear
        layer.path = path
    return layer
