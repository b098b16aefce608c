"""LoRA and DoRA on nn.Conv1d and nn.ConvTranspose1d: the layer that PEFT injects for ``LoraConfig``.

Equations and papers: `audiolora.conv.factors`. The parameters keep PEFT's names and, for groups = 1, its shapes:
``lora_A.weight (r, C_in, k)``, ``lora_B.weight (C_out, r, 1)``, ``lora_magnitude_vector.weight (1, C_out, 1)``; drawn
in PEFT's order too, so the same seed gives the same start. Where we differ from PEFT, and why:

- groups: A is (r, C_in/g, k), shared by the groups, instead of r tied to g and no merge;
- DoRA's norm is of W + ΔW as a kernel, right for groups too;
- Tucker factors, which PEFT has for LoHa and LoKr alone (`lora_config(conv_factors="tucker")`), where k > 1:
  ``lora_A (q, C_in/g, 1)`` with q = min(r, C_in/g), ``lora_core (r, q, k)``, ``lora_B (C_out, r, 1)``;
- transposed convolutions, which PEFT refuses: the same factors, A over the inputs of a group and B over the outputs;
- ``lora_bias`` is a map on the base's bias, so that it follows a forward that transposes its output.
"""

import math
import numbers
import warnings
from collections.abc import Hashable
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora.layer import LoraLayer
from torch import nn

from audiolora.conv.batched import Adapter
from audiolora.conv.factors import LowRank, adapted_weight, channel_norm, through_core
from audiolora.layers import starts
from audiolora.layers.any_convolution import channels_of
from audiolora.layers.interchange import conv_factors, mark
from audiolora.layers.low_rank import LowRankLayer


class Magnitude(nn.Module):
    """DoRA's m, under the name and in the shape that PEFT's files have it: (1, C_out, 1), or (out,) if linear."""

    def __init__(self, m: torch.Tensor, shape: tuple[int, ...] = (1, -1, 1)) -> None:
        super().__init__()
        self.weight = nn.Parameter(m.detach().view(shape).clone())


class LoraConv1d(LowRankLayer, LoraLayer):
    """A convolution with LoRA or DoRA as a map on its weight.

    Args:
        base_layer: an ``nn.Conv1d`` or ``nn.ConvTranspose1d`` or a subclass, whatever its constructor and its forward,
            or any module with a convolution's weight (`layers.any_convolution`).
        adapter_name: PEFT's name for the first adapter.
        config: PEFT's ``LoraConfig``.
        r, lora_alpha: rank and alpha of this module, after ``rank_pattern`` and ``alpha_pattern``.

    Raises:
        ValueError: a rank below 1, an alpha that is not positive, or an option that has no meaning for a convolution.
    """

    adapter_layer_names = (*LoraLayer.adapter_layer_names, "lora_core")
    magnitude_shape: tuple[int, ...] = (1, -1, 1)

    def __init__(
        self,
        base_layer: nn.Module,
        adapter_name: str,
        config: LoraConfig,
        r: int = 0,
        lora_alpha: int = 1,
        **kwargs: Any,
    ) -> None:
        nn.Module.__init__(self)
        with warnings.catch_warnings():
            # PEFT does not know transposed convolutions' sizes; it does after the next line.
            warnings.filterwarnings("ignore", message="Unsupported layer type", category=UserWarning)
            LoraLayer.__init__(self, base_layer)
        self.lora_core = nn.ModuleDict()
        self.in_features, self.out_features = self._sizes()
        self._active_adapter = adapter_name
        self.path = kwargs.get("target_name") or type(base_layer).__name__
        try:
            self.attach()
            self.update_layer(adapter_name, r, lora_alpha, config, **kwargs)
        except Exception:
            self.detach_map()  # leave the model as it was
            raise

    def update_layer(self, adapter_name: str, r: int, lora_alpha: int, config: LoraConfig, **kwargs: Any) -> None:
        """Add an adapter to this layer."""
        with self._with_only(()):
            _check(config, r, lora_alpha, self.get_base_layer(), self.path, bool(set(self.r) - {adapter_name}))
        if config.lora_bias:
            self.map_tensor("bias")  # only then: PEFT's bias="all" finds the base's by its name
        with self._with_only(()):  # the new adapter is incomplete until the end: whoever looks sees the plain base
            self._add_adapter(adapter_name, r, lora_alpha, config)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)
        mark(config, self.path, self.get_base_layer())

    def _add_adapter(self, adapter_name: str, r: int, lora_alpha: int, config: LoraConfig) -> None:
        self.r[adapter_name], self.lora_alpha[adapter_name] = r, lora_alpha
        self.scaling[adapter_name] = lora_alpha / (math.sqrt(r) if config.use_rslora else r)
        self.use_rslora[adapter_name], self.use_dora[adapter_name] = config.use_rslora, config.use_dora
        self.lora_bias[adapter_name] = config.lora_bias
        self.lora_dropout[adapter_name] = nn.Dropout(config.lora_dropout) if config.lora_dropout > 0 else nn.Identity()
        self._add_factors(adapter_name, r, config)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        starts.start(self, adapter_name, config)
        if config.use_dora:
            self.lora_magnitude_vector[adapter_name] = Magnitude(
                self._start_magnitude(adapter_name), self.magnitude_shape
            )

    def _sizes(self) -> tuple[int, int]:
        channels = channels_of(self.get_base_layer())
        return channels.in_channels, channels.out_channels

    def _add_factors(self, adapter_name: str, r: int, config: LoraConfig) -> None:
        """Holders of the factors, with their start: never called, but named, typed and drawn as in PEFT."""
        channels = channels_of(self.get_base_layer())
        kernel = channels.kernel_size
        tucker = conv_factors(config) == "tucker" and kernel > 1  # a pointwise kernel is a 1×1 already
        q = min(r, channels.in_per_group) if tucker else r
        self.lora_A[adapter_name] = nn.Conv1d(channels.in_per_group, q, 1 if tucker else kernel, bias=False)
        if tucker:
            self.lora_core[adapter_name] = nn.Conv1d(q, r, kernel, bias=False)
        self.lora_B[adapter_name] = nn.Conv1d(r, channels.out_channels, 1, bias=config.lora_bias)
        self._draw(adapter_name, config)
        if tucker:  # orthonormal rows: then A has the spread that PEFT's start gives it
            nn.init.orthogonal_(self.lora_A[adapter_name].weight.flatten(1))

    def _draw(self, adapter_name: str, config: LoraConfig) -> None:
        init = config.init_lora_weights
        self.reset_lora_parameters(adapter_name, init if init in (True, False, "gaussian") else True)

    def _start_magnitude(self, adapter_name: str) -> torch.Tensor:
        """‖W + ΔW‖ (C_out,), so that c = 1 and the adapted layer starts as the base; empty on ``meta``."""
        A, W = self.lora_A[adapter_name].weight, self.get_base_layer().weight
        if A.is_meta:
            return torch.empty(self.out_features, device="meta", dtype=A.dtype)
        with torch.no_grad():
            term = self.term(adapter_name)
            return channel_norm(adapted_weight(W, term), term.transposed_groups).to(A.dtype)

    def term(self, adapter_name: str) -> LowRank:
        """The adapter's low-rank term."""
        A, B = self.lora_A[adapter_name].weight, self.lora_B[adapter_name].weight
        if adapter_name in self.lora_core:
            core: Any = self.lora_core[adapter_name]
            A = through_core(core.weight, A.flatten(1))
        base = self.get_base_layer()
        groups = base.groups if isinstance(base, nn.ConvTranspose1d) else None
        return LowRank(A, B.flatten(1), self.scaling[adapter_name], groups)

    def magnitude_of(self, adapter: str) -> torch.Tensor | None:
        return self.lora_magnitude_vector[adapter].weight if self.use_dora[adapter] else None

    def has_adapter(self, name: str) -> bool:
        return name in self.scaling

    def factors_of(self, adapter: str) -> list[torch.Tensor]:
        magnitude = self.magnitude_of(adapter)
        holders: tuple[Any, ...] = (self.lora_A, self.lora_B, self.lora_core)
        factors = [holder[adapter].weight for holder in holders if adapter in holder]
        return factors if magnitude is None else [*factors, magnitude]

    def settings_of(self, adapter: str) -> Hashable:
        return float(self.scaling[adapter]), self._dropout_p(adapter)

    def batched_adapter(self, adapter: str) -> Adapter | None:
        if self._dropout_p(adapter):
            return None
        bias = self.lora_B[adapter].bias * self.scaling[adapter] if self.lora_bias[adapter] else None
        return Adapter(self.term(adapter), self.magnitude_of(adapter), bias)

    def adapt_bias(self, bias: torch.Tensor, adapters: list[str]) -> torch.Tensor:
        """b + Σ s·b_B over the adapters that have ``lora_bias``."""
        for name in adapters:
            if self.lora_bias[name]:
                bias = bias + (self.lora_B[name].bias * self.scaling[name]).to(bias.dtype)
        return bias

    def __repr__(self) -> str:
        return "audiolora." + super().__repr__()


def alpha_refused(alpha: object, *, inference: bool = False) -> str | None:
    """The rule that an alpha breaks, or None.

    Zero trains nothing and a negative one is a slip of the keyboard, but a file that has one is a function like any
    other (PEFT loads it), so for inference a finite number will do.

    Example:
        >>> alpha_refused(0)
        'alpha must be a positive number, got 0'
    """
    number = isinstance(alpha, numbers.Real) and not isinstance(alpha, bool) and math.isfinite(alpha)
    if number and (inference or alpha > 0):  # type: ignore[operator]
        return None
    return f"alpha must be a {'finite' if inference else 'positive'} number, got {alpha!r}"


def _check(config: LoraConfig, r: int, alpha: float, base: nn.Module, where: str, others: bool) -> None:
    if not isinstance(r, int) or isinstance(r, bool) or r < 1:
        raise ValueError(f"{where}: r must be a positive integer, got {r!r}; try r=8")
    why = alpha_refused(alpha, inference=config.inference_mode)
    if why is not None:
        raise ValueError(f"{where}: {why}; try lora_alpha={2 * r}")
    why = starts.refused(config, r, base, others)
    if why is not None:
        raise ValueError(f"{where}: {why}")
    if conv_factors(config) == "tucker" and config.init_lora_weights not in (True, False):
        raise ValueError(
            f"{where}: init_lora_weights={config.init_lora_weights!r} is not defined for Tucker factors; leave it at "
            "True, or take conv_factors='shared'"
        )
    if config.lora_bias and config.bias != "none":
        raise ValueError(f"{where}: lora_bias=True adapts the bias that bias={config.bias!r} trains; set bias='none'")
    if config.lora_bias and not isinstance(getattr(base, "bias", None), torch.Tensor):
        raise ValueError(
            f"{where}: lora_bias=True needs a convolution with a bias, and this one has none; "
            "set lora_bias=False or leave the module out of target_modules"
        )
    options = ("velora_config", "alora_invocation_tokens", "arrow_config")
    unsupported = [name for name in options if getattr(config, name, None)]
    if unsupported:
        raise ValueError(f"{where}: {unsupported[0]} has no meaning for a convolution; leave it out of LoraConfig")
