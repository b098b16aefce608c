"""Training a Whisper adapter with transformers' Seq2SeqTrainer: short contexts, whole checkpoints, exact resume."""

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import EarlyStoppingCallback, Seq2SeqTrainer, Seq2SeqTrainingArguments, TrainerCallback
from transformers.trainer_pt_utils import LengthGroupedSampler

from audiolora.files import write_text
from audiolora.speech.clips import Clips, WhisperCollator
from audiolora.speech.context import ContextPolicy, audio_context
from audiolora.speech.settings import TrainingSettings

WHOLE = "whole"
"""The file that says a checkpoint was written to its end."""


class ByLength(LengthGroupedSampler):
    """Batches of like length, so that short context is short, in an order that only the seed and the epoch decide."""

    def __init__(self, batch_size: int, durations_s: Sequence[float], seed: int) -> None:
        super().__init__(batch_size, lengths=list(durations_s))
        self.seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Deal the order of another epoch; transformers calls this, also for the epoch that a resume begins in."""
        self.generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)


class WhisperTrainer(Seq2SeqTrainer):
    """Seq2SeqTrainer whose batches hold clips of like length, and whose encoder sees just that length."""

    def __init__(self, *args: Any, eval_collator: WhisperCollator, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._eval_collator = eval_collator

    def compute_loss(self, model: torch.nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        with audio_context(model, inputs["input_features"].shape[-1]):
            return super().compute_loss(model, inputs, *args, **kwargs)

    def _get_train_sampler(self, train_dataset: Any = None) -> ByLength:
        clips = self.train_dataset if train_dataset is None else train_dataset
        batch = self.args.train_batch_size * self.args.gradient_accumulation_steps
        return ByLength(batch, clips.durations_s, self.args.data_seed)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        train_collator, self.data_collator = self.data_collator, self._eval_collator
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.data_collator = train_collator


class _WholeCheckpoints(TrainerCallback):
    """Marks a checkpoint when all of it is on disk: one without the mark was interrupted and is not resumed from."""

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        for path in checkpoint.rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        write_text(checkpoint / WHOLE, "")


class _Metrics(TrainerCallback):
    """Keeps ``metrics.jsonl`` equal to the trainer's own history, which a resume takes back to its checkpoint."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            write_text(self.path, "".join(json.dumps(entry) + "\n" for entry in state.log_history))


def last_whole_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end; those that were not are removed."""
    whole: list[Path] = []
    for checkpoint in folder.glob("checkpoint-*"):
        if (checkpoint / WHOLE).exists():
            whole.append(checkpoint)
        else:
            shutil.rmtree(checkpoint)
    return max(whole, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def train_whisper(
    model: PeftModel,
    processor: Any,
    train: Clips,
    dev: Clips,
    settings: TrainingSettings,
    folder: Path,
    *,
    callbacks: Sequence[TrainerCallback] = (),
) -> list[dict[str, float]]:
    """Train an adapter in place; continue from the last whole checkpoint in ``folder`` if there is one.

    The adapter with the lowest development loss is the one that ``model`` holds afterwards. With the same settings,
    data and machine, an interrupted and resumed run ends with the same weights as an uninterrupted one.

    Args:
        model: from `audiolora.adapt`.
        processor: its ``WhisperProcessor``, language and task set.
        train, dev: clips to learn from, and to choose the best epoch by.
        settings: see `TrainingSettings`.
        folder: for ``checkpoint-N`` folders and ``metrics.jsonl``.
        callbacks: more of transformers' callbacks.

    Returns:
        The trainer's history: one dict a logged step (``step``, ``loss``, …) or evaluation (``eval_loss``).
    """
    start = model.get_base_model().config.decoder_start_token_id
    policy = ContextPolicy(settings.context)
    trainer = WhisperTrainer(
        model=model,
        args=_arguments(settings, folder),
        train_dataset=train,
        eval_dataset=dev,
        data_collator=WhisperCollator(processor, policy, start, training=True),
        eval_collator=WhisperCollator(processor, policy, start, training=False),
        callbacks=[_WholeCheckpoints(), _Metrics(folder / "metrics.jsonl"), *_stopping(settings), *callbacks],
    )
    checkpoint = last_whole_checkpoint(folder)
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    return trainer.state.log_history


def _stopping(settings: TrainingSettings) -> list[TrainerCallback]:
    return [EarlyStoppingCallback(settings.patience)] if settings.patience else []


def _arguments(settings: TrainingSettings, folder: Path) -> Seq2SeqTrainingArguments:
    bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    return Seq2SeqTrainingArguments(
        output_dir=str(folder),
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation,
        learning_rate=settings.learning_rate,
        warmup_steps=settings.warmup,  # a number below 1 is a share of all steps
        weight_decay=0.0,
        seed=settings.seed,
        data_seed=settings.seed,
        bf16=bf16,
        fp16=torch.cuda.is_available() and not bf16,
        eval_strategy="epoch",
        save_strategy="epoch",
        # Two besides the best: the older one is still whole while the newer is being written.
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=False,
        logging_steps=5,
        dataloader_num_workers=settings.workers,
        label_names=["labels"],
        remove_unused_columns=False,
        report_to="none",
    )


