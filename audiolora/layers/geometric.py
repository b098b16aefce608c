"""The geometric parametrisation of a weight: a length and a direction an output channel, W = r · θ/‖θ‖.

Equation: `audiolora.conv.factors`. As a parametrization of torch's, so that whoever reads the weight sees W, adapters
of any method stack upon it, and whoever assigns one writes r and θ.
"""

import torch
from torch import nn

from audiolora.conv.factors import geometric_weight, length_and_direction

LENGTH, DIRECTION = "original0", "original1"
"""torch's names for r and θ in ``module.parametrizations.weight``, and so in a state dict."""


class Geometric(nn.Module):
    """The parametrization on a module's ``weight``.

    Args:
        transposed_groups: g of a transposed convolution, else None.
    """

    def __init__(self, transposed_groups: int | None = None) -> None:
        super().__init__()
        self.transposed_groups = transposed_groups

    def forward(self, r: torch.Tensor, theta: torch.Tensor) -> torch.Tensor:
        return geometric_weight(r, theta, self.transposed_groups)

    def right_inverse(self, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return length_and_direction(weight, self.transposed_groups)
