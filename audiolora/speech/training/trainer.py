"""What every speech training has in common, whatever the model: transformers' Trainer set up for whole checkpoints and
exact resume, on one device or several."""

import dataclasses
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from transformers import EarlyStoppingCallback, TrainerCallback, TrainingArguments

from audiolora.checkpoints import WholeCheckpoints, check_processes, epochs_to_train, last_whole_checkpoint
from audiolora.diverging import DivergedError
from audiolora.speech.training.precision import mixed_precision
from audiolora.speech.training.sampling import EpochsOfClips
from audiolora.speech.training.settings import TrainingSettings
from audiolora.speech.training.training_history import History, SavesWithinEpochs

Arguments = TypeVar("Arguments", bound=TrainingArguments)

LOGGING_STEPS = 5
WAIT = timedelta(hours=12)
"""How long a process waits for the others: the first may decode all the test clips meanwhile. One that died is noticed
at once."""


def this_process() -> PartialState:
    """Where this process stands among those that ``accelerate launch`` or ``torchrun`` started, on CPUs too.

    Raises:
        ValueError: accelerate was told to shard the model over CPUs, which it does not do, and does not say.
    """
    cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()  # accelerate launch --cpu
    if cpu and parse_flag_from_env("ACCELERATE_USE_FSDP"):
        raise ValueError(
            "accelerate shards a model (--use_fsdp) over GPUs alone, and on CPUs would leave it whole in each process "
            "without a word; leave --use_fsdp out"
        )
    return PartialState(cpu=cpu, timeout=WAIT)


def resume_point(settings: TrainingSettings, folder: Path) -> tuple[str | None, int]:
    """Where to go on from: the last whole checkpoint in ``folder``, if there is one, and the epochs to train in all.

    Raises:
        ValueError: it was written by another number of processes.
    """
    process = this_process()
    with process.main_process_first():
        checkpoint = last_whole_checkpoint(folder)
    if checkpoint is None:
        return None, settings.epochs
    check_processes(checkpoint, process.num_processes)
    return str(checkpoint), epochs_to_train(settings.epochs, checkpoint)


def trainer_callbacks(settings: TrainingSettings, folder: Path) -> list[TrainerCallback]:
    """Whole checkpoints, ``metrics.jsonl`` in the folder, and early stopping where it is set."""
    stopping = [EarlyStoppingCallback(settings.patience)] if settings.patience else []
    saving = SavesWithinEpochs(settings.save_steps, settings.save_minutes)
    return [saving, WholeCheckpoints(), EpochsOfClips(), History(folder / "metrics.jsonl"), *stopping]


def trainer_arguments(
    kind: type[Arguments], settings: TrainingSettings, epochs: int, folder: Path, **more: Any
) -> Arguments:
    """Arguments of a Trainer that evaluates and saves after each epoch and ends with the best by development loss.

    Args:
        kind: transformers' class of arguments.
        settings: see `TrainingSettings`.
        epochs: to train, in all; see `resume_point`.
        folder: for ``checkpoint-N`` folders.
        more: of the arguments of ``kind``.

    Raises:
        ValueError: a precision that the device does not have.
    """
    device = this_process().device
    arguments = kind(
        output_dir=str(folder),
        num_train_epochs=epochs,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation,
        learning_rate=settings.learning_rate,
        adam_beta2=settings.adam_beta2,
        warmup_steps=settings.warmup,  # a number below 1 is a share of all steps
        weight_decay=0.0,
        seed=settings.seed,
        data_seed=settings.seed,
        use_cpu=device.type == "cpu",
        ddp_find_unused_parameters=False,
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=None,  # WholeCheckpoints deletes
        restore_callback_states_from_checkpoint=True,  # how long early stopping has been patient
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=False,
        logging_steps=LOGGING_STEPS,
        dataloader_num_workers=settings.workers,
        dataloader_pin_memory=torch.cuda.is_available(),
        label_names=["labels"],
        remove_unused_columns=False,
        report_to="none",
        **mixed_precision(settings.precision, device.type),
        **_checkpointing(kind, settings.gradient_checkpointing),
        **more,
    )
    if arguments.n_gpu > 1:  # started without a launcher: DataParallel would take means of means, and slowly
        arguments._n_gpu = 1
    return arguments


def _checkpointing(kind: type[TrainingArguments], on: bool) -> dict[str, Any]:
    """Gradient checkpointing under the name that this transformers gives it.

    Without ``use_reentrant=False`` the first layer's adapters would get no gradient: its input needs none.
    """
    if not on:
        return {}
    names = {field.name for field in dataclasses.fields(kind)}
    name = "activation_checkpointing" if "activation_checkpointing" in names else "gradient_checkpointing"
    return {name: True, f"{name}_kwargs": {"use_reentrant": False}}


def finished_history(trainer: Any, settings: TrainingSettings) -> list[dict[str, float]]:
    """The history of a Trainer that has ended.

    Raises:
        DivergedError: no epoch had a finite development loss, so that there is no best one.
    """
    if trainer.state.best_model_checkpoint is None:
        raise DivergedError(
            f"the development loss was not finite after any epoch, at learning_rate {settings.learning_rate:g}; try a "
            "tenth of it, and start the run anew"
        )
    history: list[dict[str, float]] = trainer.state.log_history
    return history
