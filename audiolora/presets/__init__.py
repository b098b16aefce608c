"""What to adapt in each model family. One file a family; a new one is a file here and a line in ``PRESETS``."""

from torch import nn

from audiolora.presets.conformer import PARAKEET, WAV2VEC2_BERT, WAV2VEC2_CONFORMER
from audiolora.presets.patches import PATCHTSMIXER, PATCHTST
from audiolora.presets.preset import GROUPS, Preset, resolve_targets, target_modules
from audiolora.presets.series_transformers import SERIES_TRANSFORMERS
from audiolora.presets.wav2vec2 import SEW_D, WAV2VEC2, WAVLM
from audiolora.presets.whisper import WHISPER

PRESETS: tuple[Preset, ...] = (
    WHISPER,
    WAV2VEC2,
    WAVLM,
    SEW_D,
    WAV2VEC2_CONFORMER,
    WAV2VEC2_BERT,
    PARAKEET,
    SERIES_TRANSFORMERS,
    PATCHTST,
    PATCHTSMIXER,
)


def preset_for(model: nn.Module) -> Preset | None:
    """The preset of a model's family by its ``config.model_type``, or None for any other network."""
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    return next((preset for preset in PRESETS if model_type in preset.model_types), None)


__all__ = ["GROUPS", "PRESETS", "Preset", "preset_for", "resolve_targets", "target_modules"]
