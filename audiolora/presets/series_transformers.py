"""Forecasters with an encoder and a decoder: Informer (Zhou et al., arXiv 2012.07436), Autoformer (Wu et al.,
arXiv 2106.13008) and transformers' plain time series transformer, which share their shape in transformers.

``conv`` is what each has: the circular convolutions between Informer's encoder layers (``distil``), one less than there
are layers, and Autoformer's projection of the trend in each decoder layer. Left alone: the embeddings of values and
positions, and the head that turns states into a distribution (``parameter_projection``).
"""

from typing import Any

import torch

from audiolora.presets.preset import Preset


def _example_inputs(config: Any) -> dict[str, torch.Tensor]:
    """Zeros for one series (1, context + the longest lag) and its future (1, prediction_length), nothing missing."""
    past = config.context_length + max(config.lags_sequence)
    length = config.prediction_length
    channels = () if config.input_size == 1 else (config.input_size,)
    inputs = {
        "past_values": torch.zeros(1, past, *channels),
        "past_time_features": torch.zeros(1, past, config.num_time_features),
        "past_observed_mask": torch.ones(1, past, *channels, dtype=torch.bool),
        "future_values": torch.zeros(1, length, *channels),
        "future_time_features": torch.zeros(1, length, config.num_time_features),
    }
    if config.num_static_categorical_features:
        inputs["static_categorical_features"] = torch.zeros(1, config.num_static_categorical_features, dtype=torch.long)
    if config.num_static_real_features:
        inputs["static_real_features"] = torch.zeros(1, config.num_static_real_features)
    return inputs


SERIES_TRANSFORMERS = Preset(
    family="time series transformers",
    model_types=("informer", "autoformer", "time_series_transformer"),
    groups={
        "conv": ("downConv", "trend_projection"),
        "attention": ("q_proj", "v_proj"),
        "ffn": ("fc1", "fc2"),
    },
    example_inputs=_example_inputs,
)
