"""How many frames a CTC model makes of a clip, and whether it hears the silence that pads a batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn

_HEARS_PADDING_NEVER = ("Wav2Vec2BertForCTC", "ParakeetForCTC")
_HEARS_NO_MASKED_PADDING = (
    "Wav2Vec2ForCTC",
    "HubertForCTC",
    "WavLMForCTC",
    "UniSpeechForCTC",
    "UniSpeechSatForCTC",
)


def ctc_network(model: nn.Module) -> Any:
    """The CTC model itself, inside PEFT's and torch's wrappers.

    Raises:
        TypeError: there is none, or more than one.
    """
    found: list[Any] = [module for module in model.modules() if type(module).__name__.endswith("ForCTC")]
    if len(found) != 1:
        raise TypeError(f"{type(model).__name__} holds {len(found)} transformers models for CTC; give one with one")
    return found[0]


def input_length(extractor: Any, n_samples: int) -> int:
    """The steps of what the feature extractor hands to the model for a clip alone: samples, or log-mel frames.

    Args:
        extractor: the model's feature extractor.
        n_samples: of the clip, at the extractor's sampling rate.
    """
    kind = type(extractor).__name__
    if kind == "Wav2Vec2FeatureExtractor":
        return n_samples
    if kind == "SeamlessM4TFeatureExtractor":  # windows of 25 ms each 10 ms, two in one step
        return max(0, 1 + (n_samples - 400) // 160) // extractor.stride
    if kind == "ParakeetFeatureExtractor":
        return n_samples // extractor.hop_length
    rate = extractor.sampling_rate
    made = extractor(np.zeros(n_samples, np.float32), sampling_rate=rate, return_attention_mask=True)
    return int(np.asarray(made["attention_mask"]).sum())


@dataclass(frozen=True)
class FrameCount:
    """How many frames a model makes of a clip of so many samples; light, so that worker processes may have it.

    Args:
        config: the model's.
        extractor: its feature extractor.
        formula: transformers' method of the model's class, from the steps of its input to frames.

    Example:
        >>> FrameCount.of(model, processor.feature_extractor)(16_000)  # doctest: +SKIP
        49
    """

    config: Any
    extractor: Any
    formula: Callable[..., torch.Tensor]

    @classmethod
    def of(cls, model: nn.Module, extractor: Any) -> FrameCount:
        """Of a CTC model, adapted or not."""
        network = ctc_network(model)
        name = "_get_subsampling_output_length"
        name = name if hasattr(network, name) else "_get_feat_extract_output_lengths"
        return cls(network.config, extractor, getattr(type(network), name))

    def __call__(self, n_samples: int) -> int:
        """Frames of a clip alone; 0 where it is too short for one.

        Args:
            n_samples: at the extractor's sampling rate.
        """
        steps = input_length(self.extractor, n_samples)
        if type(self.extractor).__name__ != "Wav2Vec2FeatureExtractor" and steps < 2:
            return 0  # its normalisation divides by steps - 1
        n_frames = int(self.formula(SimpleNamespace(config=self.config), torch.tensor([steps])))
        # SEW pools frames; of fewer than it pools at once nothing is left
        return n_frames if n_frames >= getattr(self.config, "squeeze_factor", 1) else 0


def hears_padding(model: nn.Module, extractor: Any) -> bool:
    """Whether a clip's logits depend on the silence behind it, and so on the clips beside it in a batch.

    Group norm's statistics are over the padding too, whatever the mask. With layer norm and a mask a model hears none,
    but for the families whose later convolutions reach into it (data2vec, SEW, Conformer).
    """
    kinds = {kind.__name__ for kind in type(ctc_network(model)).__mro__}
    if kinds & set(_HEARS_PADDING_NEVER):
        return False
    config = ctc_network(model).config
    masked = bool(extractor.return_attention_mask) and getattr(config, "feat_extract_norm", "layer") == "layer"
    return not (masked and kinds & set(_HEARS_NO_MASKED_PADDING) and not getattr(config, "add_adapter", False))
