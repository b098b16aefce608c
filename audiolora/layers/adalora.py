"""AdaLoRA on nn.Conv1d and nn.ConvTranspose1d: the layer that PEFT injects for ``AdaLoraConfig``.

Zhang et al., "Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning", arXiv 2303.10512. Equation:
`audiolora.conv.factors`. ∂P, ∂λ and ∂Q follow from the low-rank term's ∂A and ∂B by the chain rule, so the dense ∂W is
not formed here either. Which singular values stay is decided for all modules together, in `audiolora.allocation`.

Names and shapes are those that PEFT gives its own two-dimensional convolution: ``lora_A (r, C_in/g·k)``, the paper's Q,
``lora_E (r, 1)``, its Λ, and ``lora_B (C_out, r)``, its P. Where we differ from PEFT, and why:

- groups: Q is over one group's inputs, shared by the groups, as LoRA's A is here;
- no module gets more singular values than its matrix (C_out, C_in/g·k) has: a depthwise kernel of three numbers has
  three at most, and rows beyond could not be orthogonal. ``ranknum``, by which the update is divided, stays the rank
  asked for, so that one scaling holds in all modules;
- a linear layer whose weight is parametrized is served here too: PEFT's merge into one is lost.
"""

import warnings
from collections.abc import Hashable
from typing import Any

import torch
from peft import AdaLoraConfig
from peft.tuners.adalora.layer import AdaLoraLayer
from torch import nn

from audiolora.conv.batched import Adapter
from audiolora.conv.factors import LowRank, svd_term
from audiolora.conv.packed import Weight, unpacked
from audiolora.layers.any_convolution import channels_of
from audiolora.layers.low_rank import LowRankLayer

RANKNUM_EPSILON = 1e-5
"""PEFT's, so that a rank of 0 divides nothing by zero."""


class AdaLoraConv1d(LowRankLayer, AdaLoraLayer):
    """A convolution with s·P·Λ·Q as a map on its weight.

    Args:
        base_layer: as in `layers.lora.LoraConv1d`, or an ``nn.Linear``.
        adapter_name: PEFT's name for the first adapter.
        config: PEFT's ``AdaLoraConfig``.
        r: the rank to start with, ``config.init_r``.
        lora_alpha: the update is scaled by lora_alpha / r.
        path: the module's name in its model.

    Raises:
        ValueError: a negative rank, or a weight that no map can be put on.
    """

    def __init__(
        self,
        base_layer: nn.Module,
        adapter_name: str,
        config: AdaLoraConfig,
        r: int = 0,
        lora_alpha: int = 1,
        path: str = "",
        **kwargs: Any,
    ) -> None:
        nn.Module.__init__(self)
        with warnings.catch_warnings():
            # PEFT does not know transposed convolutions' sizes; the kernel's shape says them.
            warnings.filterwarnings("ignore", message="Unsupported layer type", category=UserWarning)
            AdaLoraLayer.__init__(self, base_layer)
        self.path = path or type(base_layer).__name__
        self.kernel_shape = kernel_shape_of(self.get_base_layer())
        self.in_features, self.out_features = self.kernel_shape[1:].numel(), self.kernel_shape[0]
        self._active_adapter = adapter_name
        try:
            self.attach()
            for parameter in self.get_base_layer().parameters():
                parameter.requires_grad = False
            self.update_layer(adapter_name, r, lora_alpha, config)
        except Exception:
            self.detach_map()  # leave the model as it was
            raise

    def update_layer(self, adapter_name: str, r: int, lora_alpha: int, config: AdaLoraConfig, **kwargs: Any) -> None:
        """Add an adapter to this layer, or give one that is there another rank."""
        rank, before = min(r, self.in_features, self.out_features), self.lora_A.get(adapter_name)
        with self._with_only(()):  # the adapter is incomplete until the end: whoever looks sees the plain base
            AdaLoraLayer.update_layer(self, adapter_name, rank, lora_alpha, config)
            self.ranknum[adapter_name].requires_grad_(False).fill_(float(r))  # PEFT trains it but over float32
        if before is not None:  # PEFT made the factors float32 once, and new ones are in the base's dtype
            for factors in (self.lora_A, self.lora_E, self.lora_B):
                factors[adapter_name].data = factors[adapter_name].data.to(before.dtype)
        self._cache.clear()

    def term(self, adapter_name: str) -> LowRank:
        """The adapter's low-rank term, of all its singular values, those that are zero too."""
        base = self.get_base_layer()
        groups = base.groups if isinstance(base, nn.ConvTranspose1d) else None
        # A tensor, not a number: a compiled graph must not wait for its value.
        values = self.lora_E[adapter_name] / (self.ranknum[adapter_name] + RANKNUM_EPSILON)
        P, Q = self.lora_B[adapter_name], self.lora_A[adapter_name]
        return svd_term(P, values, Q, float(self.scaling[adapter_name]), self.kernel_shape, groups)

    def adapt_weight(self, weight: Weight, adapters: list[str]) -> torch.Tensor:
        """W' with these adapters, one map after the other; one without any singular value left changes nothing."""
        at_work = [name for name in adapters if self.r[name]]
        return super().adapt_weight(weight, at_work) if at_work else unpacked(weight)

    def merged_weight(self, weight: Weight, adapters: list[str]) -> torch.Tensor:
        return super().merged_weight(weight, [name for name in adapters if self.r[name]])

    def get_delta_weight(self, adapter: str) -> torch.Tensor:
        """s·P·Λ·Q, as the weight is stored; PEFT's name."""
        return super().get_delta_weight(adapter) if self.r[adapter] else torch.zeros_like(self.base_tensor("weight"))

    def has_adapter(self, name: str) -> bool:
        return name in self.scaling

    def factors_of(self, adapter: str) -> list[torch.Tensor]:
        return [self.lora_A[adapter], self.lora_E[adapter], self.lora_B[adapter]]

    def settings_of(self, adapter: str) -> Hashable:
        return float(self.scaling[adapter]), float(self.ranknum[adapter]), self._dropout_p(adapter)

    def batched_adapter(self, adapter: str) -> Adapter | None:
        return None if self._dropout_p(adapter) or not self.r[adapter] else Adapter(self.term(adapter), None, None)

    def __repr__(self) -> str:
        return "audiolora." + super().__repr__()


def kernel_shape_of(base: nn.Module) -> torch.Size:
    """(C_out, C_in/g, k) of a convolution, (out, in) of a linear layer.

    Raises:
        ValueError: neither of the two (`channels_of` says why).

    Example:
        >>> kernel_shape_of(nn.ConvTranspose1d(4, 6, 5, groups=2))
        torch.Size([6, 2, 5])
    """
    if isinstance(base, nn.Linear):
        return torch.Size((base.out_features, base.in_features))
    channels = channels_of(base)
    return torch.Size((channels.out_channels, channels.in_per_group, channels.kernel_size))
