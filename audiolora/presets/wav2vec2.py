"""The wav2vec2 family (Baevski et al., arXiv 2006.11477): seven convolutions over the waveform and one over positions.

``conv`` means both: the feature encoder's ``conv_layers.*.conv`` and the weight-normed, grouped positional convolution
(k = 128; data2vec-audio has five small ones). Left alone: the projection, and the quantiser that only pretraining uses.
"""

from typing import Any

import torch

from audiolora.presets.preset import Preset

_GROUPS = {"conv": ("conv",), "attention": ("q_proj", "v_proj"), "ffn": ("intermediate_dense", "output_dense")}


def _example_inputs(config: Any) -> dict[str, torch.Tensor]:
    """A quarter of a second of silence at 16 kHz, input_values (1, 4000)."""
    return {"input_values": torch.zeros(1, 4000)}


WAV2VEC2 = Preset(
    family="wav2vec2",
    model_types=("wav2vec2", "hubert", "data2vec-audio", "sew", "unispeech", "unispeech-sat"),
    groups=_GROUPS,
    example_inputs=_example_inputs,
)

WAVLM = Preset(
    family="WavLM",
    model_types=("wavlm",),
    groups=_GROUPS | {"attention": ("q_proj", "k_proj", "v_proj", "out_proj")},
    refused={
        "attention": (
            "its attention reads the weights of its projections without calling the modules, so PEFT's adapter there "
            "would be bypassed in silence; use targets=['conv', 'ffn']"
        )
    },
    example_inputs=_example_inputs,
)
