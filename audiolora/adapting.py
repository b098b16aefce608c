"""``audiolora.adapt``: one call from a model to a PEFT model with adapters in its convolutions."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from peft import AdaLoraConfig, LoHaConfig, LoKrConfig, LoraConfig, PeftConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from audiolora.all_or_nothing import undone_on_error
from audiolora.integration import enable
from audiolora.layers.interchange import CONV_FACTORS, VERSION, WeightSpaceLoraConfig
from audiolora.layers.lora import alpha_refused
from audiolora.presets import preset_for, resolve_targets, target_modules
from audiolora.rank_schedule import RankSchedule
from audiolora.running_statistics import hold_statistics

METHODS = ("lora", "dora", "loha", "lokr", "adalora")


def lora_config(
    model: nn.Module,
    method: str = "lora",
    *,
    r: int | Mapping[str, int] = 8,
    targets: str | Sequence[str] = "both",
    alpha: float | None = None,
    dropout: float = 0.0,
    use_rslora: bool = False,
    conv_factors: str = "shared",
) -> LoraConfig:
    """The ``peft.LoraConfig`` that `adapt` applies for LoRA and DoRA; arguments and errors as there.

    Example:
        >>> import torch, audiolora
        >>> audiolora.lora_config(torch.nn.Sequential(torch.nn.Conv1d(4, 8, 3)), r=2).lora_alpha
        4
    """
    if method not in ("lora", "dora"):
        raise ValueError(f"method must be 'lora' or 'dora', got {method!r}; adapter_config has the others")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must lie in [0, 1), got {dropout!r}; try dropout=0.05")
    if conv_factors not in CONV_FACTORS:
        raise ValueError(f"conv_factors must be one of {CONV_FACTORS}, got {conv_factors!r}")
    settings = _targets_and_ranks(model, r, targets, alpha)
    settings |= {"lora_alpha": settings.pop("alpha"), "lora_dropout": dropout}
    settings |= {"use_rslora": use_rslora, "use_dora": method == "dora"}
    if conv_factors == "shared":
        return LoraConfig(**settings)
    said = {"version": VERSION, "conv_factors": conv_factors, "weight_space": {}}
    return WeightSpaceLoraConfig(**settings, audiolora=said)


def adapter_config(
    model: nn.Module,
    method: str = "lora",
    *,
    r: int | Mapping[str, int] = 8,
    targets: str | Sequence[str] = "both",
    alpha: float | None = None,
    dropout: float = 0.0,
    use_rslora: bool = False,
    conv_factors: str = "shared",
    schedule: RankSchedule | None = None,
) -> PeftConfig:
    """PEFT's config of the method that `adapt` applies; arguments and errors as there.

    Example:
        >>> import torch, audiolora
        >>> net = torch.nn.Sequential(torch.nn.Conv1d(4, 8, 3))
        >>> audiolora.adapter_config(net, "lokr", r=2).peft_type.value
        'LOKR'
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {METHODS}, got {method!r}")
    _check_schedule(method, r, schedule)
    if method in ("lora", "dora"):
        return lora_config(
            model,
            method,
            r=r,
            targets=targets,
            alpha=alpha,
            dropout=dropout,
            use_rslora=use_rslora,
            conv_factors=conv_factors,
        )
    if dropout and method != "adalora":
        raise ValueError(
            f"dropout={dropout!r} acts on the input of a low-rank path, which {method} has none of; leave it out, or "
            "take adapter_config(...) and set its rank_dropout or module_dropout"
        )
    if use_rslora:
        raise ValueError(f"use_rslora is LoRA's; {method} is scaled by alpha / r; leave it out, or give alpha")
    if conv_factors != "shared":
        instead = "leave it out" if method == "adalora" else "take adapter_config(...), use_effective_conv2d=True"
        raise ValueError(f"conv_factors={conv_factors!r} is LoRA's; for {method} {instead}")
    if schedule is not None:
        return _adalora_config(model, r, targets, alpha, dropout, schedule)
    return (LoHaConfig if method == "loha" else LoKrConfig)(**_targets_and_ranks(model, r, targets, alpha))


def _adalora_config(
    model: nn.Module,
    r: int | Mapping[str, int],
    targets: str | Sequence[str],
    alpha: float | None,
    dropout: float,
    schedule: RankSchedule,
) -> AdaLoraConfig:
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must lie in [0, 1), got {dropout!r}; try dropout=0.05")
    found = _targets_and_ranks(model, r, targets, alpha)
    settings = schedule.settings(target_r=found["r"])
    return AdaLoraConfig(
        **settings,
        lora_alpha=alpha if alpha is not None else 2 * settings["init_r"],
        target_modules=found["target_modules"],
        lora_dropout=dropout,
    )


def _targets_and_ranks(
    model: nn.Module, r: int | Mapping[str, int], targets: str | Sequence[str], alpha: float | None
) -> dict[str, Any]:
    """What every method's config has: target modules, ranks and alphas."""
    if alpha is not None and (why := alpha_refused(alpha)) is not None:
        raise ValueError(f"{why}; try alpha=16, or leave it out for 2·r")
    resolved = resolve_targets(model, targets, preset_for(model))
    ranks = _ranks(r, resolved)
    default = Counter(ranks.values()).most_common(1)[0][0]
    rank_pattern = _rank_pattern(ranks, default)
    return {
        "r": default,
        "alpha": alpha if alpha is not None else 2 * default,
        "target_modules": target_modules(model, list(ranks)),
        "rank_pattern": rank_pattern,
        # alpha follows the rank, so that one scaling alpha / r holds throughout
        "alpha_pattern": {} if alpha is not None else {name: 2 * rank for name, rank in rank_pattern.items()},
    }


def adapt(
    model: nn.Module,
    method: str = "lora",
    *,
    r: int | Mapping[str, int] = 8,
    targets: str | Sequence[str] = "both",
    alpha: float | None = None,
    dropout: float = 0.0,
    use_rslora: bool = False,
    conv_factors: str = "shared",
    schedule: RankSchedule | None = None,
    adapter_name: str = "default",
) -> PeftModel:
    """Freeze ``model`` and put trainable low-rank adapters into its convolutions and attention.

    Enables audiolora's layers in PEFT (`enable`). The result is an ordinary ``PeftModel``. A BatchNorm is frozen with
    its running statistics (`hold_statistics`).

    Args:
        model: any ``nn.Module``; Whisper, the wav2vec2 family and transformers' forecasters have presets that know
            their parts.
        method: ``"lora"`` (arXiv 2106.09685), ``"dora"`` (2402.09353), ``"loha"`` (2108.06098), ``"lokr"`` (2309.14859)
            or ``"adalora"`` (2303.10512); docs/methods.md and docs/adalora.md compare them.
        r: the rank, or a rank a target: ``{"conv": 32, "attention": 4}``. For AdaLoRA the average that the modules end
            with: their ranks are found in training, which needs `AdaLoraCallback` with transformers' Trainer.
        targets: ``"conv"``, ``"attention"``, ``"ffn"``, ``"both"`` (conv + attention; the forecasters without a
            convolution have attention + ffn), or a list of these and of module names. On a network without a preset
            ``"conv"`` is every ``nn.Conv1d`` and ``nn.ConvTranspose1d``; a module of another class that holds a
            convolution's weight (`layers.any_convolution`) is adapted when it is named.
        alpha: the update is scaled by alpha / r (alpha / √r with ``use_rslora``); default 2·r everywhere.
        dropout: on the input of the low-rank path, in [0, 1); not for LoHa and LoKr.
        use_rslora: arXiv 2312.03732; LoRA and DoRA alone.
        conv_factors: ``"shared"``, A (r, C_in/g, k) for all groups; or ``"tucker"``, 1×1 · k · 1×1, with fewer
            parameters where k is large and r well below C_in/g (docs/methods.md); LoRA and DoRA alone.
        schedule: for AdaLoRA, and for it alone: when ranks are taken away.
        adapter_name: PEFT's name for the adapter.

    Raises:
        ValueError: an unknown method, a rank below 1 or given for something that is no target, an alpha that is not
            positive, dropout outside of [0, 1), a setting that the method does not have, a target that matches nothing
            or that no adapter fits, AdaLoRA without a schedule. After any error the model is as it was.
        TypeError: the model is adapted already.

    Example:
        >>> import torch, audiolora
        >>> net = torch.nn.Sequential(torch.nn.Conv1d(4, 8, 3, padding="same", dilation=2))
        >>> adapted = audiolora.adapt(net, r=2)
        >>> adapted(torch.zeros(1, 4, 10)).shape
        torch.Size([1, 8, 10])
    """
    if any(isinstance(module, (PeftModel, BaseTunerLayer)) for module in model.modules()):
        raise TypeError(
            "the model is adapted already; add another adapter with "
            "model.add_adapter(name, audiolora.adapter_config(model.get_base_model(), ...)), or unload() it first"
        )
    config = adapter_config(
        model,
        method,
        r=r,
        targets=targets,
        alpha=alpha,
        dropout=dropout,
        use_rslora=use_rslora,
        conv_factors=conv_factors,
        schedule=schedule,
    )
    enable()
    with undone_on_error(model, adapter_name):
        adapted = get_peft_model(model, config, adapter_name=adapter_name)
    hold_statistics(adapted)
    return adapted


def _check_schedule(method: str, r: int | Mapping[str, int], schedule: RankSchedule | None) -> None:
    if (method == "adalora") != (schedule is not None):
        raise ValueError(
            "adalora takes its ranks away over the steps of a training; set "
            "schedule=audiolora.RankSchedule(total_step=…), the optimiser steps that it will take"
            if schedule is None
            else f"method={method!r} has no schedule; leave it out, or set method='adalora'"
        )
    if schedule is None:
        return
    if isinstance(r, Mapping):
        raise ValueError(f"adalora has one budget for all modules, and r={dict(r)} gives one a target; try r=8")
    if schedule.init_r is not None and isinstance(r, int) and schedule.init_r < r:
        raise ValueError(f"init_r={schedule.init_r} is less than the target r={r}, and ranks are only taken away")


def _ranks(r: int | Mapping[str, int], resolved: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """The rank of each module; a later target's rank wins where two name the same module."""
    by_target = dict(r) if isinstance(r, Mapping) else dict.fromkeys(resolved, r)
    unknown, missing = sorted(set(by_target) - set(resolved)), sorted(set(resolved) - set(by_target))
    if unknown or missing:
        raise ValueError(
            f"r must name a rank for each target: {sorted(resolved)}; "
            + (f"{unknown} are no targets" if unknown else f"{missing} have none")
        )
    for target, rank in by_target.items():
        if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
            raise ValueError(f"{target}: r must be a positive integer, got {rank!r}; try r=8")
    return {name: by_target[target] for target, names in resolved.items() for name in names}


def _rank_pattern(ranks: Mapping[str, int], default: int) -> dict[str, int]:
    """PEFT's ``rank_pattern``: keys are regular expressions over the end of a module's name.

    A last name alone (``conv1``) where it decides the rank, else the whole name.
    """
    last = {name: name.rpartition(".")[2] for name in ranks}
    ranks_of = {part: {rank for name, rank in ranks.items() if last[name] == part} for part in last.values()}
    return {
        re.escape(last[name]) if len(ranks_of[last[name]]) == 1 else "^" + re.escape(name): rank
        for name, rank in ranks.items()
        if rank != default
    }
