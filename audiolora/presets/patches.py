"""Forecasters over patches, which have no convolution at all: PatchTST (Nie et al., arXiv 2211.14730) and PatchTSMixer
(Ekambaram et al., arXiv 2306.09364).

A patch is projected by a Linear, so ``targets="both"`` means what there is: PatchTST's attention and feed-forward, the
mixer's feed-forward (over patches, features and, if they mix, channels). Left alone: the patches' embedding and the
head, whose size goes with the horizon; train the head in full with PEFT's ``modules_to_save`` where it pays.
"""

from typing import Any

import torch

from audiolora.presets.preset import Preset


def _example_inputs(config: Any) -> dict[str, torch.Tensor]:
    """One series of zeros, past_values (1, context_length, channels)."""
    return {"past_values": torch.zeros(1, config.context_length, config.num_input_channels)}


PATCHTST = Preset(
    family="PatchTST",
    model_types=("patchtst",),
    groups={"attention": ("q_proj", "v_proj"), "ffn": ("ff.0", "ff.3")},
    both=("attention", "ffn"),
    example_inputs=_example_inputs,
)

PATCHTSMIXER = Preset(
    family="PatchTSMixer",
    model_types=("patchtsmixer",),
    groups={"attention": ("q_proj", "v_proj"), "ffn": ("fc1", "fc2")},
    both=("attention", "ffn"),
    example_inputs=_example_inputs,
)
