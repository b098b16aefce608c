"""Training a Whisper adapter with transformers' Seq2SeqTrainer: short contexts, whole checkpoints, exact resume."""

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from peft import PeftModel
from safetensors import SafetensorError
from transformers import EarlyStoppingCallback, Seq2SeqTrainer, Seq2SeqTrainingArguments, TrainerCallback

from audiolora.files import write_text
from audiolora.speech.clips import Clips, WhisperCollator
from audiolora.speech.context import ContextPolicy, audio_context
from audiolora.speech.run import WHOLE
from audiolora.speech.settings import TrainingSettings
from audiolora.speech.torchaudio_extra import require_torchaudio


class WhisperTrainer(Seq2SeqTrainer):
    """Seq2SeqTrainer whose encoder sees no more than the longest clip of each batch.

    Batches are drawn at random, not by length: batches of like length train a third faster, but they put the one-word
    clips into batches of their own, and more errors remain (97 against 44 % WER, attention LoRA at learning rate 3e-3,
    batches of 8, on speech through a voice scrambler). Small batches waste less on padding than large ones.
    """

    def __init__(self, *args: Any, eval_collator: WhisperCollator, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._eval_collator = eval_collator
        # Whisper's forward takes any keyword but ignores num_items_in_batch: its loss is the mean over its own batch.
        # So the Trainer must divide by the accumulated steps itself, and must not multiply by the processes.
        self.model_accepts_loss_kwargs = False

    def compute_loss(self, model: torch.nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        with audio_context(model, inputs["input_features"].shape[-1]):
            return super().compute_loss(model, inputs, *args, **kwargs)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        try:
            super()._save_checkpoint(*args, **kwargs)
        except (OSError, RuntimeError, SafetensorError) as error:  # torch turns a full disk into a RuntimeError
            raise OSError(
                f"{self.args.output_dir}: checkpoint-{self.state.global_step} could not be written "
                f"({error.__context__ or error}); is the disk full? Free some space, and the same command continues "
                "from the last whole checkpoint"
            ) from error

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        train_collator: Any = self.data_collator  # type: ignore[has-type]
        self.data_collator = self._eval_collator
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.data_collator = train_collator


class _WholeCheckpoints(TrainerCallback):
    """Marks a checkpoint when all of it is on disk, and only then lets older ones go.

    One without the mark was interrupted and is not resumed from. transformers deletes older checkpoints before this, so
    it is told to keep all, and they are deleted here: the newest whole one and the best so far are always there.
    """

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.best_global_step:  # the folder may have been moved since the checkpoint noted its path
            state.best_model_checkpoint = str(_checkpoint(args.output_dir, state.best_global_step))

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        PartialState().wait_for_everyone()  # each process writes the state of its own random generators
        if not state.is_world_process_zero:
            return
        newest = _checkpoint(args.output_dir, state.global_step)
        for path in newest.rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        write_text(newest / WHOLE, "")
        best = _checkpoint(args.output_dir, state.best_global_step or state.global_step)
        for older in set(newest.parent.glob("checkpoint-*")) - {newest, best}:
            (older / WHOLE).unlink()  # first: it may be interrupted half deleted
            shutil.rmtree(older)


def _checkpoint(folder: str, step: int) -> Path:
    return Path(folder) / f"checkpoint-{step}"


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
    if settings.speed:
        require_torchaudio("speed perturbation")
    config = model.get_base_model().config
    start = config.decoder_start_token_id
    policy = ContextPolicy(settings.context)
    with this_process().main_process_first():
        checkpoint = last_whole_checkpoint(folder)
    trainer = WhisperTrainer(
        model=model,
        args=_arguments(settings, _epochs(settings, checkpoint), folder),
        train_dataset=train,
        eval_dataset=dev,
        data_collator=WhisperCollator(processor, policy, start, training=True, speed=settings.speed),
        eval_collator=WhisperCollator(processor, policy, start, training=False),
        callbacks=[_WholeCheckpoints(), _Metrics(folder / "metrics.jsonl"), *_stopping(settings), *callbacks],
    )
    with _masking(config, settings.spec_augment):
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    if trainer.state.best_model_checkpoint is None:
        raise ValueError(
            f"the development loss was not finite after any epoch, at learning_rate {settings.learning_rate:g}; try a "
            "tenth of it, and start the run anew"
        )
    return trainer.state.log_history


@contextmanager
def _masking(config: Any, on: bool) -> Iterator[None]:
    """SpecAugment as transformers' Whisper does it, on the training device."""
    wanted = {"apply_spec_augment": on, "mask_time_prob": 0.05, "mask_feature_prob": 0.05}
    before = {name: getattr(config, name) for name in wanted}
    config.update(wanted)
    try:
        yield
    finally:
        config.update(before)


def _epochs(settings: TrainingSettings, checkpoint: Path | None) -> int:
    """The epochs to train: as set, or as many as were trained where the checkpoint says that training had stopped."""
    if checkpoint is None:
        return settings.epochs
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    stopped = state["stateful_callbacks"]["TrainerControl"]["args"]["should_training_stop"]
    return round(state["epoch"]) if stopped else settings.epochs


def _stopping(settings: TrainingSettings) -> list[TrainerCallback]:
    return [EarlyStoppingCallback(settings.patience)] if settings.patience else []


def _arguments(settings: TrainingSettings, epochs: int, folder: Path) -> Seq2SeqTrainingArguments:
    bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    return Seq2SeqTrainingArguments(
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
        save_total_limit=None,  # _WholeCheckpoints deletes
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
    )
