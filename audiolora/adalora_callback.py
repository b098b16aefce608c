"""AdaLoRA in transformers' Trainer: an allocation after every optimiser step, and checkpoints that resume exactly."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import TrainerCallback

from audiolora.allocation import WeightSpaceAdaLoraModel, adalora_layers, adalora_tuner

STATE = "adalora.safetensors"
"""In a checkpoint: the smoothed importance of every entry, the singular values, and which are kept."""

_SCHEDULE = ("target_r", "init_r", "total_step", "tinit", "tfinal", "deltaT", "beta1", "beta2")


class AdaLoraCallback(TrainerCallback):
    """Allocates AdaLoRA's ranks while transformers' Trainer trains; without it such a training stops with an error.

    It acts after the optimiser's step, when the gradients, accumulated ones too, are still there. While training goes
    on, a saved adapter has all its triplets, so that training can go on from it; when training ends, the masked ones
    are dropped from what is saved, and the config's ``rank_pattern`` says which those are. Checkpoints get the
    allocator's averages beside the adapter (`STATE`), and a training that is resumed gives the numbers of one that was
    not interrupted. Give it before callbacks that need a checkpoint to be whole.

    Args:
        resume_from: the checkpoint that ``trainer.train(resume_from_checkpoint=…)`` is given, where it is not one of
            the Trainer's own ``output_dir``.

    Raises:
        ValueError: before the first step: the model has no AdaLoRA adapter to train, its ``total_step`` is not the
            steps that the Trainer will take, the checkpoint has no state of an allocator or that of another training;
            at the first step: the loss came without the orthogonality penalty.

    Example:
        >>> AdaLoraCallback().resume_from is None
        True
    """

    def __init__(self, resume_from: str | os.PathLike[str] | None = None) -> None:
        self.resume_from = None if resume_from is None else Path(resume_from)

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        tuner = _tuner_to_train(model)
        config = tuner.peft_config[tuner.trainable_adapter]
        if config.total_step != state.max_steps:
            raise ValueError(
                f"AdaLoRA's total_step={config.total_step}, and this training takes {state.max_steps} optimiser steps: "
                "the last ranks would go at the wrong time or never; adapt the model with "
                f"schedule=audiolora.RankSchedule(total_step={state.max_steps})"
            )
        tuner.keeps_whole = True
        tuner.steps.disarm()
        config.rank_pattern = None
        if state.global_step:
            own = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            _restore(tuner, (self.resume_from or own) / STATE, state.global_step)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        tuner = _tuner_to_train(model)
        weight = tuner.peft_config[tuner.trainable_adapter].orth_reg_weight
        if weight and not tuner.penalised and not args.torch_compile:  # compiled, nothing is noted
            raise ValueError(
                "the loss came without AdaLoRA's orthogonality penalty, for it is formed outside of the network (a "
                "compute_loss or a label smoothing of the Trainer's); add audiolora.orthogonality_penalty(model) to "
                "it there, or set orth_reg_weight=0"
            )
        tuner.penalised = False

    def on_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        _tuner_to_train(model).update_and_allocate(state.global_step + 1)  # the Trainer counts this step later

    def on_save(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if args.should_save:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            _save(_tuner_to_train(model), folder / STATE, state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """What is saved from now on has the triplets that are kept: of the model as it is, the best or the last."""
        tuner = _tuner_to_train(model)
        adapter = tuner.trainable_adapter
        assert adapter is not None
        values = {path: layer.lora_E[adapter] for path, layer in adalora_layers(tuner.model, adapter)}
        pattern = {f"{path}.lora_E.{adapter}": (E != 0).flatten().tolist() for path, E in values.items()}
        tuner.keeps_whole, tuner.rank_pattern, tuner.steps.armed = False, pattern, True
        tuner.peft_config[adapter].rank_pattern = pattern
        kept, target = sum(map(sum, pattern.values())), tuner.rankallocator.target_bgt
        if kept > target:
            warnings.warn(
                f"AdaLoRA keeps {kept} triplets and its budget is {target}: the model is as it was before the schedule "
                "had come to its end (training stopped early, or an earlier checkpoint was the best)",
                stacklevel=2,
            )


def rank_allocation(model: torch.nn.Module) -> list[TrainerCallback]:
    """For audiolora's own trainers: `AdaLoraCallback` where there are ranks to allocate, nothing for another model."""
    tuner = adalora_tuner(model)
    needed = tuner is not None and tuner.trainable_adapter is not None and not tuner.ranks_are_final
    return [AdaLoraCallback()] if needed else []


def _tuner_to_train(model: Any) -> WeightSpaceAdaLoraModel:
    tuner = adalora_tuner(model)
    if tuner is None or tuner.trainable_adapter is None:
        raise ValueError(
            "AdaLoraCallback is for a model with an AdaLoRA adapter to train (audiolora.adapt(model, 'adalora', …) or "
            "an AdaLoraConfig, with audiolora enabled), and this one has none; leave the callback out"
        )
    if tuner.ranks_are_final:
        raise ValueError(
            "the adapter was loaded with the ranks that an earlier training allocated, and there is nothing to take "
            "away from it; leave the callback out to train it on as it is"
        )
    return tuner


def _save(tuner: WeightSpaceAdaLoraModel, path: Path, step: int) -> None:
    adapter, allocator = tuner.trainable_adapter, tuner.rankallocator
    assert adapter is not None
    tensors = {f"values.{name}": layer.lora_E[adapter] for name, layer in adalora_layers(tuner.model, adapter)}
    for kind in ("exp_avg_ipt", "exp_avg_unc"):
        tensors |= {f"{kind}.{name}": average for name, average in getattr(allocator, kind).items()}
    config = tuner.peft_config[adapter]
    schedule = {name: getattr(config, name) for name in _SCHEDULE}
    said = {"step": step, "schedule": schedule, "rank_pattern": tuner.rank_pattern}
    part = path.with_name(path.name + ".part")
    save_file({k: t.detach().cpu().contiguous() for k, t in tensors.items()}, part, {"audiolora": json.dumps(said)})
    os.replace(part, path)


def _restore(tuner: WeightSpaceAdaLoraModel, path: Path, step: int) -> None:
    adapter, allocator = tuner.trainable_adapter, tuner.rankallocator
    assert adapter is not None
    if not path.is_file():
        raise ValueError(
            f"{path}: no such file, and without the smoothed importance in it the ranks would be allocated anew; "
            "resume from a checkpoint that AdaLoraCallback wrote (AdaLoraCallback(resume_from=…) if it is elsewhere)"
        )
    with safe_open(path, "pt") as file:
        said = json.loads(file.metadata()["audiolora"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}
    config = tuner.peft_config[adapter]
    schedule = {name: getattr(config, name) for name in _SCHEDULE}
    if (said["step"], said["schedule"]) != (step, schedule):
        raise ValueError(f"{path}: of step {said['step']} with {said['schedule']}; resumed are {step} and {schedule}")
    layers = dict(adalora_layers(tuner.model, adapter))
    own = {f"values.{name}": layer.lora_E[adapter].detach().cpu() for name, layer in layers.items()}
    other = [name for name in own if name not in tensors or not torch.equal(own[name], tensors[name])]
    if other:
        raise ValueError(f"{path}: its {other[0]} is not the model's; resume from one checkpoint throughout")
    for kind in ("exp_avg_ipt", "exp_avg_unc"):
        found = {key.removeprefix(f"{kind}."): t for key, t in tensors.items() if key.startswith(f"{kind}.")}
        setattr(allocator, kind, {k: t.to(next(tuner.model.parameters()).device) for k, t in found.items()})
    allocator.ipt = {name: torch.zeros_like(average) for name, average in allocator.exp_avg_ipt.items()}
    tuner.rank_pattern = said["rank_pattern"]
