"""What every speech training has in common, whatever the model: transformers' Trainer set up for whole checkpoints and
exact resume."""

import json
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from transformers import EarlyStoppingCallback, TrainerCallback, TrainingArguments

from audiolora.checkpoints import WholeCheckpoints
from audiolora.files import write_text
from audiolora.speech.sampling import EpochsOfClips
from audiolora.speech.settings import TrainingSettings

Arguments = TypeVar("Arguments", bound=TrainingArguments)


class _Metrics(TrainerCallback):
    """Keeps ``metrics.jsonl`` equal to the trainer's own history, which a resume takes back to its checkpoint."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            write_text(self.path, "".join(json.dumps(entry) + "\n" for entry in state.log_history))


def this_process() -> PartialState:
    """Where this process stands among those that ``accelerate launch`` or ``torchrun`` started, on CPUs too."""
    asked = parse_flag_from_env("ACCELERATE_USE_CPU")  # accelerate launch --cpu
    return PartialState(cpu=asked or not torch.accelerator.is_available())


def trainer_callbacks(settings: TrainingSettings, folder: Path) -> list[TrainerCallback]:
    """Whole checkpoints, ``metrics.jsonl`` in the folder, and early stopping where it is set."""
    stopping = [EarlyStoppingCallback(settings.patience)] if settings.patience else []
    return [WholeCheckpoints(), EpochsOfClips(), _Metrics(folder / "metrics.jsonl"), *stopping]


def trainer_arguments(
    kind: type[Arguments], settings: TrainingSettings, epochs: int, folder: Path, **more: Any
) -> Arguments:
    """Arguments of a Trainer that evaluates and saves after each epoch and ends with the best by development loss.

    Args:
        kind: transformers' class of arguments.
        settings: see `TrainingSettings`.
        epochs: to train, in all; see `checkpoints.epochs_to_train`.
        folder: for ``checkpoint-N`` folders.
        more: of the arguments of ``kind``.
    """
    bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    return kind(
        output_dir=str(folder),
        num_train_epochs=epochs,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation,
        learning_rate=settings.learning_rate,
        warmup_steps=settings.warmup,  # a number below 1 is a share of all steps
        weight_decay=0.0,
        seed=settings.seed,
        data_seed=settings.seed,
        use_cpu=this_process().device.type == "cpu",
        ddp_find_unused_parameters=False,
        bf16=bf16,
        fp16=torch.cuda.is_available() and not bf16,
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=None,  # WholeCheckpoints deletes
        restore_callback_states_from_checkpoint=True,  # how long early stopping has been patient
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=False,
        logging_steps=5,
        dataloader_num_workers=settings.workers,
        dataloader_pin_memory=torch.cuda.is_available(),
        label_names=["labels"],
        remove_unused_columns=False,
        report_to="none",
        **more,
    )
