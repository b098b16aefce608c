"""transformers' forecasters, tiny and random: their presets, and an adapter's life in each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

import audiolora
from audiolora.presets import preset_for, resolve_targets
from tests.nets.lifecycle import adapted_names, check_life

SERIES = {
    "prediction_length": 4,
    "context_length": 12,
    "lags_sequence": [1, 2],
    "num_time_features": 1,
    "d_model": 8,
    "encoder_ffn_dim": 8,
    "decoder_ffn_dim": 8,
    "encoder_layers": 2,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "init_std": 0.2,
}
PATCHES = {
    "context_length": 16,
    "patch_length": 4,
    "patch_stride": 4,
    "num_input_channels": 2,
    "d_model": 8,
    "init_std": 0.5,
}
TST = PATCHES | {"num_hidden_layers": 1, "num_attention_heads": 2, "ffn_dim": 8, "prediction_length": 4}


@dataclass(frozen=True)
class Forecaster:
    """A model, its settings, how many modules of each group its preset must find, and what ``"both"`` means."""

    model: str
    settings: dict[str, Any]
    groups: dict[str, int]
    both: tuple[str, ...] = ("conv", "attention")

    def make(self) -> Any:
        torch.manual_seed(0)
        kind = getattr(transformers, self.model)
        return kind(kind.config_class(**self.settings)).eval()


ATTENTION = {"attention": 2 * (2 + 2)}  # q and v of two encoder layers and of a decoder layer's two attentions
FORECASTERS = {
    "Informer": Forecaster("InformerForPrediction", SERIES, {"conv": 1, **ATTENTION, "ffn": 6}),
    "Informer without distilling": Forecaster(
        "InformerForPrediction", SERIES | {"distil": False}, {**ATTENTION, "ffn": 6}, both=("attention",)
    ),
    "Autoformer": Forecaster(
        "AutoformerForPrediction",
        SERIES | {"moving_average": 3, "label_length": 4},
        {"conv": 1, **ATTENTION, "ffn": 6},
    ),
    "time series transformer": Forecaster(
        "TimeSeriesTransformerForPrediction",
        SERIES,
        {**ATTENTION, "ffn": 6},
        both=("attention",),
    ),
    "PatchTST": Forecaster("PatchTSTForPrediction", TST, {"attention": 2, "ffn": 2}, both=("attention", "ffn")),
    "PatchTSMixer": Forecaster(
        "PatchTSMixerForPrediction", PATCHES | {"num_layers": 2, "prediction_length": 4}, {"ffn": 2 * 2 * 2}, ("ffn",)
    ),
    "PatchTSMixer with attention": Forecaster(
        "PatchTSMixerForPrediction",
        PATCHES | {"num_layers": 1, "prediction_length": 4, "self_attn": True, "self_attn_heads": 2},
        {"attention": 2, "ffn": 2 * 2},
        both=("attention", "ffn"),
    ),
}

everyone = pytest.mark.parametrize("name", FORECASTERS)


def inputs(model: Any) -> dict[str, torch.Tensor]:
    """The preset's example inputs, with a series in them."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    preset = preset_for(base)
    assert preset is not None
    generator = torch.Generator().manual_seed(1)
    return {
        name: torch.randn(tensor.shape, generator=generator) if tensor.is_floating_point() else tensor
        for name, tensor in preset.example_inputs(base.config).items()
    }


def run(model: Any) -> torch.Tensor:
    """The parameters of the forecast's distribution, or the forecast."""
    torch.manual_seed(2)  # Informer draws the keys that it looks at
    output = model(**inputs(model))
    if "prediction_outputs" in output:
        return output.prediction_outputs
    return torch.cat([parameter.flatten() for parameter in output.params])


@everyone
@pytest.mark.parametrize("method", ["lora", "dora"])
def test_its_life(name: str, method: str, tmp_path: Path) -> None:
    forecaster = FORECASTERS[name]
    model = check_life(forecaster.make, run, tmp_path, method=method, r=2)
    assert len(adapted_names(model)) == sum(forecaster.groups[group] for group in forecaster.both)


@everyone
def test_its_groups(name: str) -> None:
    forecaster = FORECASTERS[name]
    model = forecaster.make()
    preset = preset_for(model)
    assert preset is not None and model.config.model_type in preset.model_types
    for group, count in forecaster.groups.items():
        names = resolve_targets(model, group, preset)[group]
        assert len(names) == count, names
        assert {type(model.get_submodule(name)) for name in names} == {nn.Conv1d if group == "conv" else nn.Linear}
    assert tuple(resolve_targets(model, "both", preset)) == forecaster.both


@everyone
def test_example_inputs_run(name: str) -> None:
    model = FORECASTERS[name].make()
    preset = preset_for(model)
    assert preset is not None
    with torch.no_grad():
        output = model(**preset.example_inputs(model.config))
    parameters = [output.prediction_outputs] if "prediction_outputs" in output else list(output.params)
    assert all(parameter.isfinite().all() for parameter in parameters)


@pytest.mark.parametrize("name", ["PatchTST", "PatchTSMixer", "time series transformer"])
def test_a_family_without_convolutions_says_so(name: str) -> None:
    model = FORECASTERS[name].make()
    with pytest.raises(ValueError, match=r"has no nn.Conv1d and .* Linear modules: .*Name them: targets=\["):
        audiolora.adapt(model, targets="conv")


def test_several_channels_and_static_features() -> None:
    settings = SERIES | {
        "input_size": 2,
        "num_static_categorical_features": 1,
        "cardinality": [3],
        "embedding_dimension": [2],
        "num_static_real_features": 1,
    }
    model = Forecaster("TimeSeriesTransformerForPrediction", settings, {}).make()
    with torch.no_grad():
        assert run(model).isfinite().all()


def test_patchtst_s_batch_norm_stays_as_it_is() -> None:
    model = audiolora.adapt(FORECASTERS["PatchTST"].make(), r=2)
    before = {name: buffer.clone() for name, buffer in model.named_buffers() if "running_" in name}
    assert before
    run(model.train())
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers() if name in before)
