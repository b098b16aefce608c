"""AdaLoRA's schedule: how many ranks there are to spend at which step of a training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from peft import AdaLoraConfig


@dataclass(frozen=True)
class RankSchedule:
    """When AdaLoRA takes ranks away, in optimiser steps; for ``audiolora.adapt(model, "adalora", schedule=…)``.

    Args:
        total_step: the steps of the whole training.
        init_r: the rank that every module starts with; None: 1.5 times the target, as in the paper.
        tinit: steps before the first rank goes; None: a tenth of all.
        tfinal: steps after the last rank went; None: three tenths of all.
        deltaT: steps from one allocation to the next; None: a hundredth of all, at least 1.
        beta1, beta2: of the smoothed importance and of its deviation, β₁ and β₂ in the paper.
        orth_reg_weight: γ of the penalty that keeps P and Q orthogonal.

    Raises:
        ValueError: a number out of its range, or no step left for an allocation.

    Example:
        >>> RankSchedule(total_step=1000).settings(target_r=8)["init_r"]
        12
    """

    total_step: int
    init_r: int | None = None
    tinit: int | None = None
    tfinal: int | None = None
    deltaT: int | None = None
    beta1: float = 0.85
    beta2: float = 0.85
    orth_reg_weight: float = 0.5

    def __post_init__(self) -> None:
        for name, least in (("total_step", 1), ("init_r", 1), ("tinit", 0), ("tfinal", 0), ("deltaT", 1)):
            value = getattr(self, name)
            optional = value is None and name != "total_step"
            if not optional and (isinstance(value, bool) or not isinstance(value, int) or value < least):
                raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
        if not 0 <= self.orth_reg_weight < float("inf"):
            raise ValueError(f"orth_reg_weight must be at least 0, got {self.orth_reg_weight!r}; try 0.5")
        times = self.settings(1)
        if times["tinit"] + times["tfinal"] >= self.total_step:
            raise ValueError(
                f"tinit={times['tinit']} and tfinal={times['tfinal']} leave no step of total_step={self.total_step} "
                "for an allocation; make them smaller or the training longer"
            )

    def settings(self, target_r: int) -> dict[str, Any]:
        """Of ``AdaLoraConfig``, with every None resolved."""
        total = self.total_step
        return {
            "target_r": target_r,
            "init_r": -(-3 * target_r // 2) if self.init_r is None else self.init_r,
            "total_step": total,
            "tinit": total // 10 if self.tinit is None else self.tinit,
            "tfinal": 3 * total // 10 if self.tfinal is None else self.tfinal,
            "deltaT": max(1, total // 100) if self.deltaT is None else self.deltaT,
            "beta1": self.beta1,
            "beta2": self.beta2,
            "orth_reg_weight": self.orth_reg_weight,
        }


def check_config(config: AdaLoraConfig) -> None:
    """Whether a schedule and options are ones that AdaLoRA has; asked before a module is touched.

    Raises:
        ValueError: a rank, step or weight out of its range, or an option that PEFT's AdaLoRA would leave out silently.
    """
    for name, value in (("init_r", config.init_r), ("target_r", config.target_r), ("deltaT", config.deltaT)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a positive integer, got {value!r}")
    if config.target_r > config.init_r:
        raise ValueError(
            f"target_r={config.target_r} is more than init_r={config.init_r}, and AdaLoRA takes ranks away; set "
            f"init_r={-(-config.target_r * 3 // 2)}"
        )
    for name, value in (("beta1", config.beta1), ("beta2", config.beta2)):
        if not 0 < value < 1:
            raise ValueError(f"{name} must lie between 0 and 1, got {value!r}; try 0.85")
    for name in ("use_rslora", "lora_bias", "alpha_pattern"):
        if getattr(config, name, None):
            raise ValueError(f"{name} has no meaning for AdaLoRA; leave it out of AdaLoraConfig")
    if not isinstance(config.init_lora_weights, bool):
        raise ValueError(
            f"init_lora_weights={config.init_lora_weights!r} is not defined for AdaLoRA; use True or False"
        )
