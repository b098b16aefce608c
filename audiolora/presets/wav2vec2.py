"""The wav2vec2 family (Baevski et al., arXiv 2006.11477): seven convolutions over the waveform and one over positions.

``conv`` means both: the feature encoder's ``conv_layers.*.conv`` and the weight-normed, grouped positional convolution
(k = 128; data2vec-audio has five small ones). Left alone: the projection, and the quantiser that only pretraining uses.
`conformer` has the members whose layers have convolutions of their own.
"""

from typing import Any

import torch

from audiolora.presets.preset import Preset

_GROUPS = {"conv": ("conv",), "attention": ("q_proj", "v_proj"), "ffn": ("intermediate_dense", "output_dense")}


def example_wave(config: Any) -> dict[str, torch.Tensor]:
    """A quarter of a second of silence at 16 kHz, input_values (1, 4000)."""
    return {"input_values": torch.zeros(1, 4000)}


WAV2VEC2 = Preset(
    family="wav2vec2",
    model_types=("wav2vec2", "hubert", "data2vec-audio", "sew", "unispeech", "unispeech-sat"),
    groups=_GROUPS,
    example_inputs=example_wave,
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
    example_inputs=example_wave,
)

# DeBERTa's layers; its query and value projections see the content, and the shared ones the positions too.
SEW_D = Preset(
    family="SEW-D",
    model_types=("sew-d",),
    groups={
        "conv": ("conv",),
        "attention": ("query_proj", "value_proj"),
        "ffn": ("intermediate.dense", "output.dense"),
    },
    left_out={"attention.output.dense": ""},
    example_inputs=example_wave,
)
