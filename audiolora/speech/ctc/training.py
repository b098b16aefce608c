"""Training CTC models with transformers' Trainer: every target checked first, whole checkpoints, exact resume."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from audiolora.adalora_callback import rank_allocation
from audiolora.checkpoints import NamesAFullDisk
from audiolora.speech.ctc.collate import CtcCollator, Fits
from audiolora.speech.ctc.frames import FrameCount, ctc_network
from audiolora.speech.ctc.heads import head_of
from audiolora.speech.ctc.settings import CtcTrainingSettings, Freeze
from audiolora.speech.ctc.targets import check_targets, clip_faults, raise_faults
from audiolora.speech.training.clips import Clips
from audiolora.speech.training.global_batch import GlobalBatchLoss
from audiolora.speech.training.sampling import OrdersClips
from audiolora.speech.training.sharding import whole_afterwards
from audiolora.speech.training.trainer import finished_history, resume_point, trainer_arguments, trainer_callbacks

if TYPE_CHECKING:
    from audiolora.speech.ctc.models import LoadedCtc

logger = logging.getLogger(__name__)


class CtcTrainer(OrdersClips, NamesAFullDisk, GlobalBatchLoss, Trainer):
    """Trainer whose loss is the mean over all clips of an update."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # The models take any keyword, so transformers thinks that they heed num_items_in_batch; they do not.
        self.model_accepts_loss_kwargs = False

    def items(self, inputs: dict[str, Any]) -> torch.Tensor:
        return torch.tensor(len(inputs["labels"]), device=inputs["labels"].device)


def freeze(model: nn.Module, what: Freeze) -> None:
    """Leave a part of a whole CTC model untrained, as transformers' recipes do.

    Args:
        model: without adapters; changed in place.
        what: "features", the feature encoder (the convolutions over the waveform); "base", all but the head; "none".

    Raises:
        ValueError: a model without a feature encoder over the waveform for "features", or another value.
    """
    network = ctc_network(model)
    if what == "features":
        if not hasattr(network, "freeze_feature_encoder"):
            raise ValueError(
                f"{type(network).__name__} hears log-mel features and has no feature encoder over the waveform to "
                "freeze; set freeze='none' or 'base'"
            )
        network.freeze_feature_encoder()
    elif what == "base":
        network.requires_grad_(False)
        head_of(network)[1].requires_grad_(True)
    elif what != "none":
        raise ValueError(f"freeze must be 'none', 'features' or 'base', got {what!r}")


def train_ctc(
    model: nn.Module,
    processor: Any,
    train: Clips,
    dev: Clips,
    settings: CtcTrainingSettings,
    folder: Path,
    *,
    language: str | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> list[dict[str, float]]:
    """Train an adapter in place; continue from the last whole checkpoint in ``folder`` if there is one.

    The weights with the lowest development loss are those that ``model`` holds afterwards. With the same settings, data
    and machine, an interrupted and resumed run ends with the same weights as an uninterrupted one.

    The loss is the mean over the batch of each clip's CTC loss over its tokens (``ctc_loss_reduction="mean"``), and no
    layer is dropped as a whole (``layerdrop=0``: an adapter in a dropped layer would have no gradient), whatever the
    model's config says; its dropouts are as they are. An infinite loss stays one (``ctc_zero_infinity=False``).

    Args:
        model: from `audiolora.adapt`; or a CTC model, of which what requires a gradient is trained.
        processor: its feature extractor and tokenizer.
        train, dev: clips to learn from and to choose the best epoch by.
        settings: see `CtcTrainingSettings`.
        folder: for ``checkpoint-N`` folders and ``metrics.jsonl``.
        language: code of the texts' language, for how its letters fold (`vocabulary.encoder`).
        callbacks: more of transformers' callbacks.

    Returns:
        The trainer's history: one dict a logged step (``step``, ``loss``, …) or evaluation (``eval_loss``).

    Raises:
        DataError: clips that CTC cannot be trained on, all of them by name (`speech.ctc.targets`).
        ValueError: masks that the model does not have, or a development loss that was never finite.
    """
    network = ctc_network(model)
    masks = _mask_settings(network, settings)
    for part, mask_time_length in ((train, masks.get("mask_time_length")), (dev, None)):
        check_targets(model, processor, part, language=language, mask_time_length=mask_time_length)
    checkpoint, epochs = resume_point(settings, folder)
    frames = FrameCount.of(model, processor.feature_extractor)
    fits = Fits(frames, processor, language, masks.get("mask_time_length"))
    trainer = CtcTrainer(
        model=model,
        args=trainer_arguments(TrainingArguments, settings, epochs, folder),
        train_dataset=train.augmented(settings.augmentation, seed=settings.seed, fits=fits),
        eval_dataset=dev,
        data_collator=CtcCollator(frames, processor, language),
        sampling=settings.sampling,
        callbacks=[*rank_allocation(model), *trainer_callbacks(settings, folder), *callbacks],
    )
    with (
        whole_afterwards(model, trainer),  # first: its copy has the user's config
        _config(network, masks),
        _input_without_gradient(network),
        _nameless(model),
    ):
        trainer.train(resume_from_checkpoint=checkpoint)
    return finished_history(trainer, settings)


def long_enough_for_masks(
    clips: Clips,
    loaded: LoadedCtc,
    settings: CtcTrainingSettings,
    *,
    language: str | None = None,
    skip_bad: bool = False,
) -> Clips:
    """The training clips that are as long as a SpecAugment mask: all of them where none is to be masked.

    Args:
        clips: to train on.
        loaded: the model, without adapters.
        settings: of the training.
        language: code of the texts' language.
        skip_bad: leave the others out, logging each with its reason, instead of raising.

    Raises:
        DataError: clips that are shorter, by file and row.
        ValueError: masks that the model does not have; or with `skip_bad`, no clip is left.
    """
    length = _mask_settings(ctc_network(loaded.model), settings).get("mask_time_length")
    if length is None:
        return clips
    faults = clip_faults(loaded.model, loaded.processor, clips, language=language, mask_time_length=length)
    found = [fault for fault in faults if fault is not None]
    if not skip_bad:
        raise_faults(found, len(clips))
    for fault in found:
        logger.warning("skipped %s", fault)
    kept = [utterance for utterance, fault in zip(clips.utterances, faults, strict=True) if fault is None]
    return Clips(kept, clips.channel) if found else clips


def _mask_settings(network: Any, settings: CtcTrainingSettings) -> dict[str, Any]:
    """The config's values while training, as far as masks go."""
    if not settings.spec_augment:
        return {"apply_spec_augment": False} if hasattr(network.config, "mask_time_prob") else {}
    if not hasattr(network.config, "mask_time_prob"):
        raise ValueError(f"{type(network).__name__} has no SpecAugment of its own; leave spec_augment out")
    config = network.config
    names = ("mask_time_prob", "mask_time_length", "mask_feature_prob", "mask_feature_length")
    wanted = {name: getattr(config, name) for name in names} | settings.masks()
    if not (wanted["mask_time_prob"] or wanted["mask_feature_prob"]):
        raise ValueError(
            "spec_augment masks nothing: the model's mask_time_prob and mask_feature_prob are 0; set one, such as "
            "mask_time_prob=0.05"
        )
    if wanted["mask_time_prob"] and not any(
        name.endswith("masked_spec_embed") for name, _ in network.named_parameters()
    ):
        raise ValueError(
            "the model was made without masks (mask_time_prob and mask_feature_prob 0), so it has no vector to put in "
            "the place of masked frames; set mask_time_prob=0 and mask_feature_prob alone"
        )
    if wanted["mask_feature_prob"] and wanted["mask_feature_length"] > config.hidden_size:
        raise ValueError(
            f"mask_feature_length={wanted['mask_feature_length']} is more than the {config.hidden_size} hidden "
            "features of the model; set a smaller one"
        )
    if not wanted["mask_time_prob"]:
        wanted.pop("mask_time_length")  # no clip is too short for it
    return {"apply_spec_augment": True} | wanted


@contextmanager
def _config(network: Any, masks: dict[str, Any]) -> Iterator[None]:
    """The model's settings while training; afterwards they are the user's again."""
    wanted = {"ctc_loss_reduction": "mean", "ctc_zero_infinity": False, "layerdrop": 0.0, **masks}
    config = network.config
    before = {name: getattr(config, name) for name in wanted if hasattr(config, name)}
    # data2vec-audio's config has no apply_spec_augment, and its model takes that for True
    added = [name for name in masks if name not in before]
    dropping = [(module, module.layerdrop) for module in network.modules() if hasattr(module, "layerdrop")]
    config.update({name: wanted[name] for name in (*before, *added)})
    for module, _ in dropping:  # some encoders read the config once, when they are made
        module.layerdrop = 0.0
    try:
        yield
    finally:
        config.update(before)
        for name in added:
            delattr(config, name)
        for module, layerdrop in dropping:
            module.layerdrop = layerdrop


@contextmanager
def _input_without_gradient(network: Any) -> Iterator[None]:
    """Where nothing in the feature encoder learns, no gradient is sent through it.

    transformers' feature encoders ask for the gradient of their input while training, for gradient checkpointing, until
    they are frozen as a whole; adapters in attention alone would pay for the encoder's backward.
    """
    encoders = [module for module in network.modules() if getattr(module, "_requires_grad", False) is True]
    idle = [encoder for encoder in encoders if not any(p.requires_grad for p in encoder.parameters())]
    for encoder in idle:
        encoder._requires_grad = False
    try:
        yield
    finally:
        for encoder in idle:
            encoder._requires_grad = True


@contextmanager
def _nameless(model: nn.Module) -> Iterator[None]:
    """Without the base's name while checkpoints are written.

    By the name PEFT would ask the hub, at each checkpoint, how large the base's vocabulary is, and where a new head has
    another look for embeddings to save, which these models have not.
    """
    configs = getattr(model, "peft_config", {}).values()
    names = [(config, config.base_model_name_or_path) for config in configs]
    for config, _ in names:
        config.base_model_name_or_path = None
    try:
        yield
    finally:
        for config, name in names:
            config.base_model_name_or_path = name
