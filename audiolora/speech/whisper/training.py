"""Training a Whisper adapter with transformers' Seq2SeqTrainer: short contexts, whole checkpoints, exact resume."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, TrainerCallback

from audiolora.adalora_callback import rank_allocation
from audiolora.checkpoints import NamesAFullDisk
from audiolora.speech.training.clips import IGNORED, Clips
from audiolora.speech.training.global_batch import GlobalBatchLoss
from audiolora.speech.training.sampling import OrdersClips
from audiolora.speech.training.settings import TrainingSettings
from audiolora.speech.training.sharding import whole_afterwards
from audiolora.speech.training.trainer import finished_history, resume_point, trainer_arguments, trainer_callbacks
from audiolora.speech.whisper.collate import WhisperCollator
from audiolora.speech.whisper.context import ContextPolicy, audio_context


class WhisperTrainer(OrdersClips, NamesAFullDisk, GlobalBatchLoss, Seq2SeqTrainer):
    """Seq2SeqTrainer whose encoder sees no more than the longest clip of each batch.

    Batches are drawn at random, not by length, where `settings.sampling` does not ask for it: batches of like length
    train a third faster, but they put the one-word clips into batches of their own, and more errors remain (104 and 111
    against 11 and 16 % WER with two seeds, on speech through a voice scrambler). Small batches waste less on padding
    than large ones.
    """

    def __init__(self, *args: Any, eval_collator: WhisperCollator, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._eval_collator = eval_collator
        # Whisper's forward takes any keyword, so transformers thinks that it heeds num_items_in_batch; it does not.
        self.model_accepts_loss_kwargs = False

    def items(self, inputs: dict[str, Any]) -> torch.Tensor:
        return (inputs["labels"] != IGNORED).sum()

    def compute_loss(self, model: torch.nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        with audio_context(model, inputs["input_features"].shape[-1]):
            return super().compute_loss(model, inputs, *args, **kwargs)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        train_collator: Any = self.data_collator  # type: ignore[has-type]
        self.data_collator = self._eval_collator
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.data_collator = train_collator


def train_whisper(
    model: torch.nn.Module,
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
        model: from `audiolora.adapt`; or a Whisper, of which what requires a gradient is trained.
        processor: its ``WhisperProcessor``, language and task set.
        train, dev: clips to learn from, and to choose the best epoch by.
        settings: see `TrainingSettings`.
        folder: for ``checkpoint-N`` folders and ``metrics.jsonl``.
        callbacks: more of transformers' callbacks.

    Returns:
        The trainer's history: one dict a logged step (``step``, ``loss``, …) or evaluation (``eval_loss``).
    """
    config: Any = (model.get_base_model() if isinstance(model, PeftModel) else model).config
    start = config.decoder_start_token_id
    policy = ContextPolicy(settings.context)
    checkpoint, epochs = resume_point(settings, folder)
    trainer = WhisperTrainer(
        model=model,
        args=trainer_arguments(Seq2SeqTrainingArguments, settings, epochs, folder),
        train_dataset=train.augmented(settings.augmentation, seed=settings.seed),
        eval_dataset=dev,
        data_collator=WhisperCollator(processor, policy, start, training=True),
        sampling=settings.sampling,
        eval_collator=WhisperCollator(processor, policy, start, training=False),
        callbacks=[
            *rank_allocation(model),
            *trainer_callbacks(settings, folder),
            *callbacks,
        ],
    )
    with _masking(config, settings.spec_augment), whole_afterwards(model, trainer):
        trainer.train(resume_from_checkpoint=checkpoint)
    return finished_history(trainer, settings)


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
