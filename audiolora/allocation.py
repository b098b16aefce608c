"""AdaLoRA's budget, spent over convolutions and linear layers together: PEFT's tuner and allocator, with ours in them.

Zhang et al., arXiv 2303.10512. Every module starts with init_r triplets (a column of P, a singular value λ, a row of
Q). After each optimiser step t the importance of every entry w of them is smoothed,

    I = |w · ∂w|      Ī ← β₁·Ī + (1 - β₁)·I      Ū ← β₂·Ū + (1 - β₂)·|I - Ī|      s(w) = Ī · Ū

and a triplet counts s(λ) + mean s(column of P) + mean s(row of Q). Of all modules' triplets together the b(t) that
count most keep their λ, the others' is set to zero; b falls from the start's to the target's by a cubic, between step
tinit and step total_step - tfinal. The loss gets γ · mean ‖QQᵀ - I‖, ‖PᵀP - I‖ besides (`orthogonality_penalty`).

PEFT does the arithmetic (`RankAllocator`). Ours differs where PEFT's fails or says nothing:

- a module that took no part in a step (layerdrop) keeps its averages; PEFT stops with a TypeError;
- a step that a gradient scaler skips, its gradients being infinite, leaves the averages alone; in PEFT they are NaN
  from then on;
- target_r = init_r is a budget like any other; PEFT stops at the first allocation;
- the penalty is in the loss whenever the network returns one in training. PEFT adds it for a config with a
  ``task_type`` alone, in evaluation too, and stops there with an adapter that was loaded for inference;
- the rank by which an update is divided is no parameter to train; over a base that is not float32 PEFT trains it;
- an adapter's name may be part of a module's (``conv`` in ``conv1``);
- an optimiser step without an allocation after it is an error (`_Steps`).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from peft import AdaLoraConfig, PeftModel
from peft.tuners.adalora import AdaLoraModel, RankAllocator
from peft.tuners.adalora.layer import AdaLoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import save_and_load
from torch import nn

from audiolora.all_or_nothing import WeightSpaceTuner
from audiolora.layers.adalora import AdaLoraConv1d
from audiolora.layers.any_convolution import has_convolution_weight
from audiolora.layers.lora_linear import is_computed_linear
from audiolora.rank_schedule import check_config

_peft_validate = save_and_load._validate_lora_adapter_state_dict

RankPattern = Mapping[str, list[bool]]
"""Which triplets are kept, by PEFT's names: ``encoder.conv1.lora_E``, with the adapter's name after it or not."""


class Allocator(RankAllocator):
    """PEFT's allocator; the module's text says what differs."""

    def _set_budget_scheduler(self, model: nn.Module) -> None:
        layers = dict(adalora_layers(model, self.adapter_name))
        self.name_set = sorted(f"{path}.%s.{self.adapter_name}" for path in layers)
        ranks = [layer.lora_A[self.adapter_name].shape[0] for layer in layers.values()]
        self.init_bgt = sum(ranks)
        self.target_bgt = sum(min(self.peft_config.target_r, rank) for rank in ranks)

    def update_ipt(self, model: nn.Module) -> None:
        """Smooth the importance of every entry that has a gradient."""
        factors = dict(self._factors(model))
        gradients = [p.grad for p in factors.values() if p.grad is not None]
        if gradients and not torch.stack(torch._foreach_norm(gradients)).isfinite().all():
            return
        for name, p in factors.items():
            if name not in self.ipt:
                for averages in (self.ipt, self.exp_avg_ipt, self.exp_avg_unc):
                    averages[name] = torch.zeros_like(p, requires_grad=False)
            if p.grad is None:
                continue
            importance = (p * p.grad).abs().detach()
            average = self.beta1 * self.exp_avg_ipt[name] + (1 - self.beta1) * importance
            deviation = (importance - average).abs()
            self.ipt[name], self.exp_avg_ipt[name] = importance, average
            self.exp_avg_unc[name] = self.beta2 * self.exp_avg_unc[name] + (1 - self.beta2) * deviation

    def mask_to_budget(self, model: nn.Module, budget: int) -> dict[str, list[bool]]:
        """Set the λ of all triplets but ``budget`` to zero; which are kept, by name."""
        if budget < self.init_bgt:
            return super().mask_to_budget(model, budget)
        return {name: [True] * p.shape[0] for name, p in self._factors(model) if ".lora_E." in name}

    def mask_using_rank_pattern(self, model: nn.Module, rank_pattern: RankPattern) -> None:
        """Set the λ of the triplets that are not kept to zero again: the optimiser has moved them."""
        layers = dict(adalora_layers(model, self.adapter_name))
        with torch.no_grad():
            for name, kept in rank_pattern.items():
                values = layers[_path(name, self.adapter_name)].lora_E[self.adapter_name]
                values.masked_fill_(~torch.tensor(kept, device=values.device).view(-1, 1), 0.0)

    def _factors(self, model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
        for path, layer in adalora_layers(model, self.adapter_name):
            for kind in ("lora_A", "lora_E", "lora_B"):
                yield f"{path}.{kind}.{self.adapter_name}", getattr(layer, kind)[self.adapter_name]


class _Steps:
    """Raises where an optimiser step was followed by no allocation, until there has been one.

    A hook behind each λ's gradient: a step changes λ. Its version counter would not do, torch's fused optimisers leave
    that as it is.
    """

    def __init__(self) -> None:
        self.armed = True
        self._seen: dict[int, torch.Tensor] = {}

    def watch(self, values: nn.Parameter) -> None:
        values.register_post_accumulate_grad_hook(self)

    def __call__(self, values: torch.Tensor) -> None:
        if not self.armed or torch.equal(values, self._seen.setdefault(id(values), values.detach().clone())):
            return
        raise ValueError(
            "AdaLoRA is trained without allocating its ranks: the optimiser has stepped, and "
            "model.base_model.update_and_allocate(step) was not called after it. Give transformers' Trainer "
            "callbacks=[audiolora.AdaLoraCallback()], or call it after each optimizer.step() and before zero_grad(), "
            "with the number of steps done"
        )

    def disarm(self) -> None:
        """Somebody allocates."""
        self.armed = False
        self._seen.clear()


class _Penalty:
    """Forward hook of the network: the orthogonality penalty in whatever loss it returns in training."""

    def __init__(self, tuner: WeightSpaceAdaLoraModel) -> None:
        self.tuner = tuner

    def __call__(self, network: nn.Module, args: Any, output: Any) -> None:
        if not (network.training and torch.is_grad_enabled()):
            return
        loss = output.get("loss") if isinstance(output, dict) else getattr(output, "loss", None)
        if not isinstance(loss, torch.Tensor) or self.tuner.trainable_adapter is None:
            return
        loss = loss + orthogonality_penalty(self.tuner)
        if type(output) is dict:
            output["loss"] = loss
        else:  # transformers' outputs keep the item with it
            output.loss = loss


class WeightSpaceAdaLoraModel(WeightSpaceTuner, AdaLoraModel):
    """PEFT's tuner for ``AdaLoraConfig``, with audiolora's layers where a convolution stands.

    ``rank_pattern`` is which triplets are kept now, None before the first allocation. While ``keeps_whole`` a saved
    adapter has all of them, those with λ = 0 too, for training goes on from it; else it has the ones kept.
    """

    rank_pattern: dict[str, list[bool]] | None
    keeps_whole: bool

    def __init__(self, model: nn.Module, config: Any, adapter_name: str, **kwargs: Any) -> None:
        check_config(config[adapter_name] if isinstance(config, dict) else config)
        super().__init__(model, config, adapter_name, **kwargs)
        self.rank_pattern, self.keeps_whole, self.penalised, self.steps = None, False, False, _Steps()
        if self.trainable_adapter is not None:
            self.rankallocator = Allocator(self.model, self.peft_config[adapter_name], adapter_name)
            for _, layer in adalora_layers(self.model, adapter_name):
                self.steps.watch(layer.lora_E[adapter_name])
        self.model.register_forward_hook(_Penalty(self))

    @property
    def trainable_adapter(self) -> str | None:
        """The one adapter that can be trained; None if all were loaded for inference."""
        return self.__dict__.get("trainable_adapter_name")

    def _check_new_adapter_config(self, config: AdaLoraConfig) -> None:
        check_config(config)
        super()._check_new_adapter_config(config)

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        with warnings.catch_warnings():  # AdaLoRA's rank_pattern is not LoRA's, which PEFT takes it for
            warnings.filterwarnings("ignore", message="The following rank_pattern keys did not match")
            super().inject_adapter(model, adapter_name, *args, **kwargs)
        _hold_ranknum(model, adapter_name)

    def _create_and_replace(self, *args: Any, **kwargs: Any) -> None:
        self._path = kwargs["current_key"] if "current_key" in kwargs else args[5]
        super()._create_and_replace(*args, **kwargs)

    def _create_new_module(  # PEFT's is static, and called through the instance
        self, lora_config: AdaLoraConfig, adapter_name: str, target: nn.Module, **kwargs: Any
    ) -> nn.Module:
        base: Any = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
        convolution = isinstance(base, (nn.Conv1d, nn.ConvTranspose1d)) or has_convolution_weight(base)
        if convolution or is_computed_linear(base):
            return AdaLoraConv1d(target, adapter_name, lora_config, path=self._path, **kwargs)
        try:
            return AdaLoraModel._create_new_module(lora_config, adapter_name, target, **kwargs)
        except ValueError as error:
            raise ValueError(
                f"{self._path}: AdaLoRA fits nn.Linear, nn.Conv1d, nn.ConvTranspose1d, nn.Conv2d and modules with a "
                f"convolution's weight, not a {type(base).__name__}; leave it out of target_modules"
            ) from error

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.model(*args, **kwargs)  # the penalty is a hook's

    def update_and_allocate(self, global_step: int) -> None:
        """Smooth the importance and, where the schedule says so, mask; after the optimiser's step, before zero_grad().

        An adapter that was loaded with its final ranks stays as it is.

        Args:
            global_step: the optimiser steps done, this one among them.
        """
        self.steps.disarm()
        if self.ranks_are_final:
            return
        config = self.peft_config[self.trainable_adapter_name]
        config.rank_pattern = self.rank_pattern
        super().update_and_allocate(global_step)
        self.rank_pattern = config.rank_pattern
        if self.keeps_whole:
            config.rank_pattern = None

    @property
    def ranks_are_final(self) -> bool:
        """Whether the triplets that were masked are gone: the adapter came from a file that had the others alone."""
        adapter = self.trainable_adapter
        return adapter is None or self.rankallocator.init_bgt != sum(
            layer.lora_E[adapter].shape[0] for _, layer in adalora_layers(self.model, adapter)
        )

    def resize_modules_by_rank_pattern(self, rank_pattern: RankPattern, adapter_name: str) -> None:
        """Give each module the triplets that are kept; what is so already stays."""
        layers = dict(adalora_layers(self.model, adapter_name))
        full = {_path(name, adapter_name): kept for name, kept in rank_pattern.items()}
        if all(layers[path].lora_E[adapter_name].shape[0] == sum(kept) for path, kept in full.items()):
            return
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Initializing zero-element tensors")
            named = {f"{path}.lora_E.{adapter_name}": kept for path, kept in full.items()}
            super().resize_modules_by_rank_pattern(named, adapter_name)
        _hold_ranknum(self.model, adapter_name)

    def resize_state_dict_by_rank_pattern(
        self, rank_pattern: RankPattern, state_dict: dict[str, torch.Tensor], adapter_name: str
    ) -> dict[str, torch.Tensor]:
        named = {f"{_path(name, adapter_name)}.lora_E.{adapter_name}": kept for name, kept in rank_pattern.items()}
        return super().resize_state_dict_by_rank_pattern(named, state_dict, adapter_name)

    @classmethod
    def _get_adapter_state_dict(
        cls, model: Any, config: AdaLoraConfig, adapter_name: str, state_dict: Any, unwanted_adapter_names: Any
    ) -> dict[str, torch.Tensor]:
        pattern, config.rank_pattern = config.rank_pattern, None
        rest = (model, config, adapter_name, state_dict, unwanted_adapter_names)
        tensors = super()._get_adapter_state_dict(*rest)
        if pattern is None:
            return tensors
        config.rank_pattern = {f"{_path(name, adapter_name)}.lora_E": kept for name, kept in pattern.items()}
        return model.resize_state_dict_by_rank_pattern(config.rank_pattern, tensors, adapter_name)

    def _unload_and_optionally_merge(self, *args: Any, **kwargs: Any) -> nn.Module:
        unloaded = super()._unload_and_optionally_merge(*args, **kwargs)
        hooks = unloaded._forward_hooks
        for key in [key for key, hook in hooks.items() if isinstance(hook, _Penalty)]:
            del hooks[key]
        return unloaded


def adalora_layers(model: nn.Module, adapter_name: str) -> Iterator[tuple[str, AdaLoraLayer]]:
    """The layers that have this AdaLoRA adapter, ours and PEFT's, with their paths in ``model``."""
    for path, module in model.named_modules():
        if isinstance(module, AdaLoraLayer) and adapter_name in module.lora_E:
            yield path, module


def adalora_tuner(model: Any) -> WeightSpaceAdaLoraModel | None:
    """AdaLoRA's tuner in a model that `audiolora.adapt` or ``get_peft_model`` made; None if the adapters are others."""
    tuner = model.base_model if isinstance(model, PeftModel) else model
    return tuner if isinstance(tuner, WeightSpaceAdaLoraModel) else None


def orthogonality_penalty(model: nn.Module) -> torch.Tensor:
    """γ · mean over P and Q of ‖PᵀP - I‖ and ‖QQᵀ - I‖ (Frobenius), for a loss that is formed outside of the network.

    A network that returns its loss has it in there already, in training.

    Args:
        model: with a trainable AdaLoRA adapter; γ is its config's ``orth_reg_weight``.

    Raises:
        ValueError: there is no such adapter.

    Example:
        >>> import audiolora
        >>> schedule = audiolora.RankSchedule(total_step=100)
        >>> model = audiolora.adapt(nn.Sequential(nn.Conv1d(4, 8, 3)), "adalora", schedule=schedule)
        >>> audiolora.orthogonality_penalty(model).shape
        torch.Size([])
    """
    tuner = adalora_tuner(model)
    adapter = None if tuner is None else tuner.trainable_adapter
    if tuner is None or adapter is None:
        raise ValueError("the model has no AdaLoRA adapter that is trained; adapt it with method='adalora'")
    tuner.penalised = True
    norms = []
    for _, layer in adalora_layers(tuner.model, adapter):
        for factor in (layer.lora_A[adapter], layer.lora_B[adapter].mT):
            identity = torch.eye(factor.shape[0], device=factor.device, dtype=factor.dtype)
            norms.append(torch.linalg.matrix_norm(factor @ factor.mT - identity))
    return tuner.peft_config[adapter].orth_reg_weight * torch.stack(norms).mean()


def kept_ranks(model: nn.Module) -> dict[tuple[str, str], int]:
    """(module path, adapter) → the triplets that are kept, for adapters of this kind that are being trained.

    Paths are those in the network, without PEFT's ``base_model.model.``.
    """
    tuner = adalora_tuner(model)
    if tuner is None or tuner.trainable_adapter is None or tuner.rank_pattern is None:
        return {}
    adapter = tuner.trainable_adapter
    return {(_path(name, adapter), adapter): sum(kept) for name, kept in tuner.rank_pattern.items()}


def validate_adapter_state_dict(state_dict: dict[str, torch.Tensor], adapter_name: str) -> None:
    """PEFT's look for factors that were saved in pieces; a module that has no rank left has none to lose."""
    empty = [key for key, tensor in state_dict.items() if key.endswith("lora_E") and not len(tensor)]
    of_spent = {key.removesuffix("lora_E") + kind for key in empty for kind in ("lora_A", "lora_B")}
    _peft_validate({key: tensor for key, tensor in state_dict.items() if key not in of_spent}, adapter_name)


def _hold_ranknum(model: nn.Module, adapter_name: str) -> None:
    for _, layer in adalora_layers(model, adapter_name):
        layer.ranknum[adapter_name].requires_grad_(False)


def _path(name: str, adapter_name: str) -> str:
    """The module's path in a name of a rank pattern."""
    return name.removesuffix(f".{adapter_name}").removesuffix(".lora_E")
