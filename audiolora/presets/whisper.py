"""Whisper (Radford et al., arXiv 2212.04356): two convolutions over the log-mel frames, then a transformer.

conv1 (d, n_mels, 3) and conv2 (d, d, 3, stride 2) see the spectrum before anything else: where a channel moves or
mirrors it, this is the place to mend it. Left alone: ``proj_out`` (tied to the token embedding) and the positions.
"""

from typing import Any

import torch

from audiolora.presets.preset import Preset


def _example_inputs(config: Any) -> dict[str, torch.Tensor]:
    """Silent log-mel frames (1, n_mels, 2 · positions) and one decoder token."""
    return {
        "input_features": torch.zeros(1, config.num_mel_bins, 2 * config.max_source_positions),
        "decoder_input_ids": torch.full((1, 1), config.decoder_start_token_id),
    }


WHISPER = Preset(
    family="Whisper",
    model_types=("whisper",),
    groups={"conv": ("conv1", "conv2"), "attention": ("q_proj", "v_proj"), "ffn": ("fc1", "fc2")},
    example_inputs=_example_inputs,
)
