"""Conformers (Gulati et al., arXiv 2005.08100) with a CTC head: a convolution module in every layer.

``conv`` means its three convolutions, two pointwise (k = 1) around a depthwise one (k = 31 and the like, a filter a
channel), and what else is an ``nn.Conv1d``: wav2vec2-Conformer's feature encoder over the waveform, and Wav2Vec2-BERT's
adapter after its layers, where it has one. Wav2Vec2-BERT and Parakeet hear log-mel features: no convolution of theirs
sees the waveform. Parakeet's subsampling is of ``nn.Conv2d`` and in no group; named (``subsampling.layers.0``), it is
left to PEFT's own layer for it. Its output layer is a convolution too (k = 1), and as a head left alone.
"""

from typing import Any

import torch

from audiolora.presets.preset import Preset
from audiolora.presets.wav2vec2 import example_wave

_MODULE = ("pointwise_conv1", "depthwise_conv", "pointwise_conv2")
_FFN = ("intermediate_dense", "output_dense")
_ATTENTION = ("linear_q", "linear_v")


def _example_features(config: Any) -> dict[str, torch.Tensor]:
    """A quarter of a second of silence: 12 frames of two stacked log-mel frames, input_features (1, 12, 160)."""
    return {"input_features": torch.zeros(1, 12, config.feature_projection_input_dim)}


def _example_mel(config: Any) -> dict[str, torch.Tensor]:
    """Half a second of silence, log-mel frames, input_features (1, 50, n_mels)."""
    encoder = getattr(config, "encoder_config", config)
    return {"input_features": torch.zeros(1, 50, encoder.num_mel_bins)}


WAV2VEC2_CONFORMER = Preset(
    family="wav2vec2-Conformer",
    model_types=("wav2vec2-conformer",),
    groups={"conv": ("conv", *_MODULE), "attention": _ATTENTION, "ffn": _FFN},
    left_out={
        "pos_conv_embed.conv": (
            "transformers makes this convolution and never runs it (positions come from the attention), so an adapter "
            "there would do nothing; use targets=['conv']"
        )
    },
    example_inputs=example_wave,
)

WAV2VEC2_BERT = Preset(
    family="Wav2Vec2-BERT",
    model_types=("wav2vec2-bert",),
    groups={"conv": (*_MODULE, "residual_conv", "self_attn_conv"), "attention": _ATTENTION, "ffn": _FFN},
    example_inputs=_example_features,
)

PARAKEET = Preset(
    family="Parakeet",
    model_types=("parakeet_ctc", "parakeet_encoder"),
    groups={"conv": _MODULE, "attention": ("q_proj", "v_proj"), "ffn": ("linear1", "linear2")},
    example_inputs=_example_mel,
)
