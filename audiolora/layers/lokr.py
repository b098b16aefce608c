"""LoKr on nn.Conv1d and nn.ConvTranspose1d: the layer that PEFT injects for ``LoKrConfig``.

Equations and paper: `audiolora.conv.factors`. Keys, shapes, start and rules are PEFT's: C_out = a·b and C_in/g = c·d by
its ``factorization`` (``decompose_factor``); ``lokr_w1`` (a, c), or of rank r with ``decompose_both`` where r is below
half of its longer side; ``lokr_w2`` (b, d, k), or of rank r where r is below half of max(b, d): (b, r) · (r, d·k), with
``use_effective_conv2d`` and k > 1 through a Tucker core ``lokr_t2`` (r, r, k, 1). Where we differ from PEFT, and why:
`audiolora.layers.lycoris`.
"""

from typing import Any

import torch
from peft.tuners.lokr.layer import LoKrLayer, factorization

from audiolora.conv.factors import Pair, lokr_as_lora, lokr_delta, through_core
from audiolora.layers.lycoris import LycorisConv1d


class LoKrConv1d(LycorisConv1d, LoKrLayer):
    """A convolution with LoKr as a map on its weight; arguments and errors as in `LycorisConv1d`."""

    peft_layer = LoKrLayer
    inits = (True, False, "lycoris")

    def check(self, config: Any, r: int, alpha: float) -> None:
        super().check(config, r, alpha)
        factor = config.decompose_factor
        if not isinstance(factor, int) or isinstance(factor, bool) or (factor < 1 and factor != -1):
            raise ValueError(
                f"{self.path}: decompose_factor must be -1 (the most even split) or a positive integer, got {factor!r}"
            )

    def make_factors(self, adapter: str, r: int, config: Any) -> None:
        channels = self.channels
        out = factorization(channels.out_channels, config.decompose_factor)
        into = factorization(channels.in_per_group, config.decompose_factor)
        self.create_adapter_parameters(
            adapter,
            r,
            (out, into, channels.kernel_size),
            use_w1=not (config.decompose_both and r < max(out[0], into[0]) / 2),
            use_w2=r >= max(out[1], into[1]) / 2,
            use_effective_conv2d=config.use_effective_conv2d and channels.kernel_size > 1,
        )

    def start(self, adapter: str, init: object) -> None:
        if init == "lycoris":
            self.reset_adapter_parameters_lycoris_way(adapter)
        elif init:
            self.reset_adapter_parameters(adapter)
        else:
            self.reset_adapter_parameters_random(adapter)

    def delta(self, adapter: str) -> torch.Tensor:
        w2 = self.lokr_w2[adapter] if adapter in self.lokr_w2 else self._right_pair(adapter).product()
        return lokr_delta(self._left(adapter), w2, self.scaling[adapter])

    def as_lora(self, adapter: str) -> tuple[torch.Tensor, torch.Tensor] | None:
        if adapter in self.lokr_w2:
            return None
        return lokr_as_lora(self._left(adapter), self._right_pair(adapter), self.scaling[adapter])

    def _left(self, adapter: str) -> torch.Tensor:
        """w₁ (a, c)."""
        if adapter in self.lokr_w1:
            return self.lokr_w1[adapter]
        return Pair(self.lokr_w1_a[adapter], self.lokr_w1_b[adapter]).product()

    def _right_pair(self, adapter: str) -> Pair:
        """w₂ (b, d·k) as a product, where it is one."""
        a, b = self.lokr_w2_a[adapter], self.lokr_w2_b[adapter]
        if adapter not in self.lokr_t2:
            return Pair(a, b)
        return Pair(a.T, through_core(self.lokr_t2[adapter].squeeze(3), b).flatten(1))
