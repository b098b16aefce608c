"""LoRA and DoRA on an nn.Linear whose weight is computed: weight norm, `Geometric`, or another parametrization.

PEFT's layer for linear ones merges with ``weight.data += ΔW``, which writes to a value that nobody keeps: the merge is
lost, and nothing is said. Here the adapter is a map on the weight, as on a convolution's, and a merge goes through the
parametrization or is refused. Keys, shapes and the start are PEFT's; a linear layer with a plain weight stays PEFT's.
"""

from peft import LoraConfig
from torch import nn
from torch.nn.utils import parametrize

from audiolora.layers.lora import LoraConv1d
from audiolora.layers.quantized import quantization_of


class LoraLinear(LoraConv1d):
    """A linear layer with LoRA or DoRA as a map on its weight; arguments and errors as `LoraConv1d` has them."""

    magnitude_shape = (-1,)

    def _sizes(self) -> tuple[int, int]:
        base = self.get_base_layer()
        return base.in_features, base.out_features

    def _add_factors(self, adapter_name: str, r: int, config: LoraConfig) -> None:
        self.lora_A[adapter_name] = nn.Linear(self.in_features, r, bias=False)
        self.lora_B[adapter_name] = nn.Linear(r, self.out_features, bias=config.lora_bias)
        self._draw(adapter_name, config)


def is_computed_linear(module: nn.Module) -> bool:
    """Whether a module is a linear layer whose weight a parametrization or the old weight norm computes.

    Not a quantised one, over which PEFT's layer stays beside the base.

    Example:
        >>> is_computed_linear(nn.Linear(2, 2))
        False
        >>> is_computed_linear(nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)))
        True
    """
    computed = parametrize.is_parametrized(module, "weight") or "weight_v" in module._parameters
    return isinstance(module, nn.Linear) and computed and quantization_of(module) is None
