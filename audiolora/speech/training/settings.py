"""What a training run is set to; light to import, so that ``--help`` is quick."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from audiolora.speech.sound.augmentation import Augmentation, parse_augmentation
from audiolora.speech.whisper.context import ContextMode, ContextPolicy

Sampling = Literal["random", "length"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]


@dataclass(frozen=True)
class TrainingSettings:
    """What a training run is set to.

    Args:
        epochs: passes over the training clips.
        batch_size: clips a device and step.
        gradient_accumulation: steps whose gradients are summed before an update.
        learning_rate: peak; linear warm-up over ``warmup`` of the steps, then linear decay to zero.
        warmup: share of all steps, in [0, 1).
        adam_beta2: decay of AdamW's mean of squared gradients. An adapter learns in some hundred steps, of which 0.999
            would remember all; Whisper was trained with 0.98, too.
        patience: epochs without a lower development loss before training stops; 0 never stops early.
        context: how much audio the encoder sees: auto, each batch's longest clip; full, 30 s; mix, one or the other.
        spec_augment: mask stretches of time and of mel bands in training (SpecAugment, arXiv 1904.08779).
        augment: random effects on the training clips, left to right, drawn anew in each epoch: speed0.1, rir0.15-0.5s,
            noise5-20dB, gain-6-6dB, bandpass300-3400Hz, lowpass2000-7000Hz, gsm, mulaw, alaw, opus8-32kbps,
            mp3:16-64kbps; joined by commas. noise5-20dB@0.3: in that share of the clips (without it 0.5; speed and
            gain 1); gsm|opus|mp3@0.5: one of them; a name alone takes the range above.
        noise_folder: recordings that noise is taken from; white noise without it.
        rir_folder: measured impulse responses for rir; without it rooms are simulated, which needs the extra
            audiolora[augment].
        sampling: random, clips in random order; length, batches of clips of like length: less padding, and often more
            errors, for the shortest clips are then learnt from in batches of their own.
        workers: processes that read audio; 0 reads in the main one.
        seed: of the data order, of augmentation and of dropout.
        precision: of the forward and the backward; the adapters themselves are float32 always. auto: bf16 on a GPU that
            has it, fp16 on another, fp32 on CPUs.
        gradient_checkpointing: keep each layer's input alone and compute the rest again in the backward: the same
            gradients in less memory, about a third slower.
        save_steps: save a checkpoint within an epoch too, after every so many steps; 0 saves after epochs alone.
        save_minutes: save one within an epoch too, when so many minutes have passed since the last; 0 does not.

    Raises:
        ValueError: a number outside its range, or an augmentation that is unknown or cannot be had here.
    """

    epochs: int = 5
    batch_size: int = 4
    gradient_accumulation: int = 1
    learning_rate: float = 3e-3
    warmup: float = 0.1
    adam_beta2: float = 0.98
    patience: int = 0
    context: ContextMode = "auto"
    spec_augment: bool = False
    augment: str = ""
    noise_folder: str | None = None
    rir_folder: str | None = None
    sampling: Sampling = "random"
    workers: int = 0
    seed: int = 0
    precision: Precision = "auto"
    gradient_checkpointing: bool = False
    save_steps: int = 0
    save_minutes: float = 0.0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "gradient_accumulation"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must be positive and finite, got {self.learning_rate}; try 3e-3")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup is a share of the steps in [0, 1), got {self.warmup}")
        if not 0 <= self.adam_beta2 < 1:
            raise ValueError(f"adam_beta2 must lie in [0, 1), got {self.adam_beta2}; try 0.98")
        if self.patience < 0 or self.workers < 0:
            raise ValueError(f"patience and workers must not be negative, got {self.patience} and {self.workers}")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must be in [0, 2**32), got {self.seed}")
        if self.sampling not in get_args(Sampling):
            raise ValueError(f"sampling must be one of {', '.join(get_args(Sampling))}, got {self.sampling!r}")
        if self.precision not in get_args(Precision):
            raise ValueError(f"precision must be one of {', '.join(get_args(Precision))}, got {self.precision!r}")
        if self.save_steps < 0 or not 0 <= self.save_minutes < math.inf:
            raise ValueError(
                f"save_steps and save_minutes must not be negative, got {self.save_steps} and {self.save_minutes}"
            )
        ContextPolicy(self.context)  # it knows the modes
        self.augmentation.check()

    @property
    def decoding_context(self) -> Literal["auto", "full"]:
        """The context to decode at, of an adapter that was trained so."""
        return "full" if self.context == "full" else "auto"

    @property
    def augmentation(self) -> Augmentation:
        """What `augment` and the folders name."""
        return parse_augmentation(self.augment, noise_folder=self.noise_folder, rir_folder=self.rir_folder)
