"""AdamW (Loshchilov and Hutter, arXiv 1711.05101) for many devices at once: each a row, with its own steps and rate.

``torch.optim.AdamW``'s arithmetic in its order; its step count and learning rate are columns here, so that devices
which joined later, or learn slower, share the few tensor operations.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class AdamW:
    """The settings that all devices share; names and defaults are torch's.

    Raises:
        ValueError: a setting outside of its range.
    """

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.01

    def __post_init__(self) -> None:
        if not self.lr > 0:
            raise ValueError(f"lr must be positive, got {self.lr!r}; try lr=1e-3")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must lie in [0, 1), got {self.betas!r}; try betas=(0.9, 0.999)")
        if self.eps < 0 or self.weight_decay < 0:
            raise ValueError(f"eps and weight_decay must not be negative, got {self.eps!r} and {self.weight_decay!r}")

    @torch.no_grad()
    def step(
        self,
        values: torch.Tensor,
        gradient: torch.Tensor,
        first: torch.Tensor,
        second: torch.Tensor,
        steps: torch.Tensor,
        lr: torch.Tensor,
    ) -> None:
        """One step of each row, in place.

        Args:
            values, gradient: (n, P).
            first, second: (n, P), the moments.
            steps: (n, 1) float64, this one included.
            lr: (n, 1) float64, each device's.
        """
        beta1, beta2 = self.betas
        values.mul_((1 - lr * self.weight_decay).to(values.dtype))
        first.lerp_(gradient, 1 - beta1)
        second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        size = (lr / (1 - beta1**steps)).to(values.dtype)
        denominator = second.sqrt().div_((1 - beta2**steps).sqrt().to(values.dtype)).add_(self.eps)
        values.sub_(torch.div(first, denominator, out=denominator).mul_(size))
