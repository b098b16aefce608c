"""``audiolora.adapt``: one call from a model to a PEFT model with adapters in its convolutions."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence

from peft import AdaLoraConfig, LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from audiolora.all_or_nothing import undone_on_error
from audiolora.integration import enable
from audiolora.layers.lora import alpha_refused
from audiolora.presets import preset_for, resolve_targets, target_modules
from audiolora.rank_schedule import RankSchedule
from audiolora.running_statistics import hold_statistics

METHODS = ("lora", "dora", "adalora")


def lora_config(
    model: nn.Module,
    method: str = "lora",
    *,
    r: int | Mapping[str, int] = 8,
    targets: str | Sequence[str] = "both",
    alpha: float | None = None,
    dropout: float = 0.0,
    use_rslora: bool = False,
    schedule: RankSchedule | None = None,
) -> LoraConfig:
    """The ``peft.LoraConfig`` or ``peft.AdaLoraConfig`` that `adapt` applies; arguments and errors as there.

    Example:
        >>> import torch, audiolora
        >>> audiolora.lora_config(torch.nn.Sequential(torch.nn.Conv1d(4, 8, 3)), r=2).lora_alpha
        4
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {METHODS}, got {method!r}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must lie in [0, 1), got {dropout!r}; try dropout=0.05")
    if alpha is not None and (why := alpha_refused(alpha)) is not None:
        raise ValueError(f"{why}; try alpha=16, or leave it out for 2·r")
    _check_schedule(method, r, schedule, use_rslora)
    resolved = resolve_targets(model, targets, preset_for(model))
    ranks = _ranks(r, resolved)
    if schedule is not None:
        settings = schedule.settings(target_r=next(iter(ranks.values())))
        return AdaLoraConfig(
            **settings,
            lora_alpha=alpha if alpha is not None else 2 * settings["init_r"],
            target_modules=target_modules(model, list(ranks)),
            lora_dropout=dropout,
        )
    default = Counter(ranks.values()).most_common(1)[0][0]
    rank_pattern = _rank_pattern(ranks, default)
    return LoraConfig(
        r=default,
        lora_alpha=alpha if alpha is not None else 2 * default,
        target_modules=target_modules(model, list(ranks)),
        rank_pattern=rank_pattern,
        # alpha follows the rank, so that one scaling alpha / r holds throughout
        alpha_pattern={} if alpha is not None else {name: 2 * rank for name, rank in rank_pattern.items()},
        lora_dropout=dropout,
        use_rslora=use_rslora,
        use_dora=method == "dora",
    )


def adapt(
    model: nn.Module,
    method: str = "lora",
    *,
    r: int | Mapping[str, int] = 8,
    targets: str | Sequence[str] = "both",
    alpha: float | None = None,
    dropout: float = 0.0,
    use_rslora: bool = False,
    schedule: RankSchedule | None = None,
    adapter_name: str = "default",
) -> PeftModel:
    """Freeze ``model`` and put trainable low-rank adapters into its convolutions and attention.

    Enables audiolora's layers in PEFT (`enable`). The result is an ordinary ``PeftModel``. A BatchNorm is frozen with
    its running statistics (`hold_statistics`).

    Args:
        model: any ``nn.Module``; Whisper, the wav2vec2 family and transformers' forecasters have presets that know
            their parts.
        method: ``"lora"`` (arXiv 2106.09685), ``"dora"`` (arXiv 2402.09353) or ``"adalora"`` (arXiv 2303.10512).
        r: the rank, or a rank a target: ``{"conv": 32, "attention": 4}``. For AdaLoRA the average that the modules end
            with: their ranks are found in training, which needs `AdaLoraCallback` with transformers' Trainer.
        targets: ``"conv"``, ``"attention"``, ``"ffn"``, ``"both"`` (conv + attention; the forecasters without a
            convolution have attention + ffn), or a list of these and of module names. On a network without a preset
            ``"conv"`` is every ``nn.Conv1d`` and ``nn.ConvTranspose1d``; a module of another class that holds a
            convolution's weight (`layers.any_convolution`) is adapted when it is named.
        alpha: the update is scaled by alpha / r (alpha / √r with ``use_rslora``); default 2·r everywhere.
        dropout: on the input of the low-rank path, in [0, 1).
        use_rslora: arXiv 2312.03732.
        schedule: for AdaLoRA, and for it alone: when ranks are taken away.
        adapter_name: PEFT's name for the adapter.

    Raises:
        ValueError: an unknown method, a rank below 1 or given for something that is no target, an alpha that is not
            positive, dropout outside of [0, 1), a target that matches nothing or that no adapter fits, AdaLoRA without
            a schedule or one for another method. After any error the model is as it was.
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
            "model.add_adapter(name, audiolora.lora_config(model.get_base_model(), ...)), or unload() it first"
        )
    config = lora_config(
        model, method, r=r, targets=targets, alpha=alpha, dropout=dropout, use_rslora=use_rslora, schedule=schedule
    )
    enable()
    with undone_on_error(model, adapter_name):
        adapted = get_peft_model(model, config, adapter_name=adapter_name)
    hold_statistics(adapted)
    return adapted


def _check_schedule(method: str, r: int | Mapping[str, int], schedule: RankSchedule | None, use_rslora: bool) -> None:
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
    if use_rslora:
        raise ValueError("use_rslora has no meaning for adalora, whose scaling keeps to the rank at the start")
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
