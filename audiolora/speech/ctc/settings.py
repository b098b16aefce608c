"""What the training of a CTC model is set to; light to import, so that ``--help`` is quick."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from cyclopts import Parameter

from audiolora.speech.training.settings import TrainingSettings
from audiolora.speech.whisper.context import ContextMode

Freeze = Literal["none", "features", "base"]


@dataclass(frozen=True)
class CtcTrainingSettings(TrainingSettings):
    """What the training of a CTC model is set to: `TrainingSettings`, without Whisper's ``context``, and masks.

    The masks are those of transformers' wav2vec2: spans of frames become one learnt vector, spans of hidden features 0.
    What is left at None is as the model's config has it.

    Args:
        mask_time_prob: with spec_augment, about which share of frames is masked, in [0, 1].
        mask_time_length: frames of each mask (20 ms each in most models); a clip must be as long.
        mask_feature_prob: about which share of hidden features is masked, in [0, 1].
        mask_feature_length: features of each mask.

    Raises:
        ValueError: a number outside its range, a mask without spec_augment, or a context.

    Example:
        >>> CtcTrainingSettings(spec_augment=True, mask_time_length=5).mask_time_length
        5
    """

    context: Annotated[ContextMode, Parameter(parse=False)] = "auto"
    mask_time_prob: float | None = None
    mask_time_length: int | None = None
    mask_feature_prob: float | None = None
    mask_feature_length: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.context != "auto":
            raise ValueError(f"context={self.context!r} is Whisper's; a CTC model hears each clip as long as it is")
        for name, value in self.masks().items():
            if not self.spec_augment:
                raise ValueError(f"{name}={value} does nothing without spec_augment; set it too, or leave {name} out")
            if name.endswith("length") and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
            if name.endswith("prob") and not 0 <= value <= 1:
                raise ValueError(f"{name} is a share in [0, 1], got {value}")

    def masks(self) -> dict[str, float]:
        """The masks' settings that differ from the model's config, under the config's names."""
        names = ("mask_time_prob", "mask_time_length", "mask_feature_prob", "mask_feature_length")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}
