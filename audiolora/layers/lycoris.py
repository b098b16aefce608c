"""What LoHa and LoKr share: ΔW formed as a whole, added to the base's weight, with LyCORIS' two kinds of dropout.

PEFT runs a second convolution with ΔW beside the base's, by settings that it reads off the module: it leaves out the
padding mode, fails on subclasses that pad in their forward, and knows no transposed convolution. Here the base's own
forward runs with W + ΔW. Neither product has a small form to go through, so ∂W is formed, as in full fine-tuning, and
autograd takes it to the factors; everything is plain operators, so that ``torch.compile(fullgraph=True)`` trains too.

In training, as in PEFT: ``rank_dropout`` zeroes whole output channels of ΔW, ``module_dropout`` all of it. Where every
output channel is drawn PEFT's LoHa divides 0 by 0; here ΔW is zero then.
"""

import warnings
from collections.abc import Hashable
from typing import Any

import torch
from peft.tuners.lycoris_utils import LycorisConfig
from torch import nn

from audiolora.conv.factors import over_channels, stored
from audiolora.conv.packed import Weight, unpacked
from audiolora.layers.any_convolution import channels_of
from audiolora.layers.base import WeightSpaceLayer
from audiolora.layers.interchange import mark
from audiolora.layers.lora import alpha_refused


class LycorisConv1d(WeightSpaceLayer):
    """A convolution with a LyCORIS method as a map on its weight; a method derives from it and from PEFT's layer.

    Args:
        base_layer: as for `LoraConv1d`.
        adapter_name: PEFT's name for the first adapter.
        config: PEFT's ``LoHaConfig`` or ``LoKrConfig``.
        r, alpha: of this module, after ``rank_pattern`` and ``alpha_pattern``.

    Raises:
        ValueError: a setting out of its range, or a module that is no convolution.
    """

    peft_layer: Any
    inits: tuple[object, ...] = (True, False)

    def __init__(
        self,
        base_layer: nn.Module,
        adapter_name: str,
        config: LycorisConfig,
        r: int = 0,
        alpha: float = 0.0,
        **kwargs: Any,
    ) -> None:
        with warnings.catch_warnings():
            # PEFT does not know other convolutions' sizes; it does after the next lines.
            warnings.filterwarnings("ignore", message="Unsupported layer type", category=UserWarning)
            self.peft_layer.__init__(self, base_layer)
        self.channels = channels_of(self.get_base_layer())  # once: it reads the weight, which will be a map
        self.in_features, self.out_features = self.channels.in_channels, self.channels.out_channels
        self._active_adapter = adapter_name
        self.path = kwargs.get("target_name") or type(base_layer).__name__
        try:
            self.attach()
            self.update_layer(adapter_name, r, alpha, config)
        except Exception:
            self.detach_map()  # leave the model as it was
            raise

    def make_factors(self, adapter: str, r: int, config: Any) -> None:
        """Empty factors, under PEFT's names and in its shapes."""
        raise NotImplementedError

    def start(self, adapter: str, init: object) -> None:
        """The factors' start, one of ``inits``."""
        raise NotImplementedError

    def delta(self, adapter: str) -> torch.Tensor:
        """ΔW (C_out, C_in/g · k), without dropout."""
        raise NotImplementedError

    def as_lora(self, adapter: str) -> tuple[torch.Tensor, torch.Tensor] | None:
        """ΔW = B·A exactly, A (rank, C_in/g · k) and B (C_out, rank); None where it is no product of small factors."""
        raise NotImplementedError

    def update_layer(self, adapter_name: str, r: int, alpha: float, config: Any, **kwargs: Any) -> None:
        """Add an adapter to this layer."""
        self.check(config, r, alpha)
        with self._with_only(()):  # whoever looks at the weight meanwhile sees the plain base
            self.r[adapter_name], self.alpha[adapter_name] = r, alpha
            self.scaling[adapter_name] = alpha / r
            self.rank_dropout[adapter_name] = config.rank_dropout
            self.rank_dropout_scale[adapter_name] = getattr(config, "rank_dropout_scale", True)  # LoHa always does
            self.module_dropout[adapter_name] = config.module_dropout
            self.make_factors(adapter_name, r, config)
            self.start(adapter_name, config.init_weights)
            self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)
        mark(config, self.path, self.get_base_layer())

    def check(self, config: Any, r: int, alpha: float) -> None:
        """Refuse a setting that is out of its range.

        Raises:
            ValueError: it names the module, the setting and its range.
        """
        if not isinstance(r, int) or isinstance(r, bool) or r < 1:
            raise ValueError(f"{self.path}: r must be a positive integer, got {r!r}; try r=4")
        why = alpha_refused(alpha, inference=config.inference_mode)
        if why is not None:
            raise ValueError(f"{self.path}: {why}; try alpha={r}")
        for name in ("rank_dropout", "module_dropout"):
            if not 0 <= getattr(config, name) < 1:
                raise ValueError(
                    f"{self.path}: {name} must lie in [0, 1), got {getattr(config, name)!r}; try {name}=0.1"
                )
        if not any(config.init_weights is init or config.init_weights == init for init in self.inits):
            raise ValueError(
                f"{self.path}: init_weights={config.init_weights!r} is not defined; use one of {self.inits}"
            )

    def has_adapter(self, name: str) -> bool:
        return name in self.scaling

    def factors_of(self, adapter: str) -> list[torch.Tensor]:
        holders = (getattr(self, name) for name in self.adapter_layer_names)
        return [holder[adapter] for holder in holders if adapter in holder]

    def settings_of(self, adapter: str) -> Hashable:
        return object() if self._drops(adapter) else float(self.scaling[adapter])  # a drawn weight is not kept

    def get_delta_weight(self, adapter_name: str, *, apply_rank_dropout: bool = False) -> torch.Tensor:
        """ΔW stored as the weight is, in the factors' dtype; PEFT's name and arguments."""
        delta = self._stored(adapter_name).to(self.factors_of(adapter_name)[0].dtype)
        return delta * self._kept_channels(adapter_name, delta) if apply_rank_dropout else delta

    def adapt_weight(self, weight: Weight, adapters: list[str]) -> torch.Tensor:
        """W + Σ ΔW; dropped out where that is being trained."""
        weight = unpacked(weight)
        for name in adapters:
            if self.factors_of(name)[0].is_meta != weight.is_meta:
                continue  # yet to be loaded, while PEFT reads the weight's device
            delta = self._stored(name).to(weight.dtype)
            if self.training and self.module_dropout[name]:
                delta = delta * (torch.rand(1, device=delta.device) > self.module_dropout[name]).to(delta.dtype)
            if self.training and self.rank_dropout[name]:
                delta = delta * self._kept_channels(name, delta)
            weight = weight + delta
        return weight

    def merged_weight(self, weight: Weight, adapters: list[str]) -> torch.Tensor:
        """W + Σ ΔW without dropout: what a merge writes into the base in training too."""
        weight = unpacked(weight)
        for name in adapters:
            weight = weight + self._stored(name).to(weight.dtype)
        return weight

    def _stored(self, adapter: str) -> torch.Tensor:
        shape = (self.channels.out_channels, self.channels.in_per_group, self.channels.kernel_size)
        kernel = self.delta(adapter).view(shape)
        return stored(kernel, self._transposed_groups)

    def _kept_channels(self, adapter: str, delta: torch.Tensor) -> torch.Tensor:
        """1 for each output channel that is kept, scaled to a mean of 1 where the method does so, and 0 for others."""
        kept = (torch.rand(self.out_features, device=delta.device) > self.rank_dropout[adapter]).to(delta.dtype)
        if self.rank_dropout_scale[adapter]:
            kept = kept / kept.mean().clamp_min(1 / self.out_features)
        return over_channels(kept, delta, self._transposed_groups)

    def _drops(self, adapter: str) -> bool:
        return self.training and bool(self.rank_dropout[adapter] or self.module_dropout[adapter])

    @property
    def _transposed_groups(self) -> int | None:
        base = self.get_base_layer()
        return base.groups if isinstance(base, nn.ConvTranspose1d) else None

    def _get_delta_activations(self, adapter_name: str, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        raise NotImplementedError("the base runs with W + ΔW; nothing is added to its output")

    def __repr__(self) -> str:
        return "audiolora." + super().__repr__()
