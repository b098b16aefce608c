"""LoHa on nn.Conv1d and nn.ConvTranspose1d: the layer that PEFT injects for ``LoHaConfig``.

Equations and paper: `audiolora.conv.factors`. Keys, shapes and start are PEFT's: ``hada_w1_a``, ``hada_w2_a``
(C_out, r) and ``hada_w1_b``, ``hada_w2_b`` (r, C_in/g · k), the last of them zero; with ``use_effective_conv2d`` Tucker
cores ``hada_t1``, ``hada_t2`` (r, r, k, 1) between (r, C_out) and (r, C_in/g), where k > 1 (PEFT's rule: a pointwise
kernel is its own core). Where we differ from PEFT, and why: `audiolora.layers.lycoris`.
"""

from typing import Any

import torch
from peft.tuners.loha.layer import LoHaLayer

from audiolora.conv.factors import Pair, loha_as_lora, loha_delta, through_core
from audiolora.layers.lycoris import LycorisConv1d


class LoHaConv1d(LycorisConv1d, LoHaLayer):
    """A convolution with LoHa as a map on its weight; arguments and errors as in `LycorisConv1d`."""

    peft_layer = LoHaLayer

    def make_factors(self, adapter: str, r: int, config: Any) -> None:
        channels = self.channels
        out, into, k = channels.out_channels, channels.in_per_group, channels.kernel_size
        self.create_adapter_parameters(
            adapter, r, (out, into, k) if config.use_effective_conv2d and k > 1 else (out, into * k)
        )

    def start(self, adapter: str, init: object) -> None:
        if init:
            self.reset_adapter_parameters(adapter)
        else:
            self.reset_adapter_parameters_random(adapter)

    def pairs(self, adapter: str) -> tuple[Pair, Pair]:
        """(L₁, R₁) and (L₂, R₂)."""
        return (
            _pair(self.hada_w1_a[adapter], self.hada_w1_b[adapter], self.hada_t1, adapter),
            _pair(self.hada_w2_a[adapter], self.hada_w2_b[adapter], self.hada_t2, adapter),
        )

    def delta(self, adapter: str) -> torch.Tensor:
        return loha_delta(*self.pairs(adapter), self.scaling[adapter])

    def as_lora(self, adapter: str) -> tuple[torch.Tensor, torch.Tensor] | None:
        return loha_as_lora(*self.pairs(adapter), self.scaling[adapter])


def _pair(a: torch.Tensor, b: torch.Tensor, cores: Any, adapter: str) -> Pair:
    if adapter not in cores:
        return Pair(a, b)
    return Pair(a.T, through_core(cores[adapter].squeeze(3), b).flatten(1))
