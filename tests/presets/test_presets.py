"""Each family on a tiny random model: adapt, train, merge, save, and be the family's own model again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch import nn

import audiolora
from audiolora.layers.lora import LoraConv1d
from audiolora.presets import GROUPS, PRESETS, Preset, preset_for, resolve_targets

WAVE = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "conv_dim": (16, 16),
    "conv_stride": (5, 2),
    "conv_kernel": (10, 3),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "layerdrop": 0.0,
}
WHISPER = {
    "vocab_size": 50,
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "num_mel_bins": 8,
    "max_source_positions": 20,
    "max_target_positions": 10,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 3,
}


@dataclass(frozen=True)
class Family:
    """A transformers model, its tiny configuration, and how many convolutions its preset must find."""

    model: str
    n_convs: int
    settings: dict[str, Any]
    targets: Any = "both"

    def make(self) -> nn.Module:
        torch.manual_seed(0)
        kind = getattr(transformers, self.model)
        return kind(kind.config_class(**self.settings)).eval()


FAMILIES = {
    "whisper": Family("WhisperForConditionalGeneration", 2, WHISPER),
    "wav2vec2 group norm": Family("Wav2Vec2Model", 3, WAVE | {"feat_extract_norm": "group"}),
    "wav2vec2 layer norm": Family(
        "Wav2Vec2ForCTC", 3, WAVE | {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "vocab_size": 12}
    ),
    "hubert": Family("HubertModel", 3, WAVE),
    "wavlm": Family("WavLMModel", 3, WAVE, targets=["conv", "ffn"]),
    "data2vec-audio": Family("Data2VecAudioModel", 4, WAVE | {"num_conv_pos_embeddings": 2, "conv_pos_kernel_size": 5}),
    "sew": Family("SEWModel", 3, WAVE | {"squeeze_factor": 2}),
    "unispeech": Family("UniSpeechModel", 3, WAVE),
}


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Family:
    return FAMILIES[request.param]


def inputs(model: nn.Module) -> dict[str, torch.Tensor]:
    """The preset's example inputs, with sound in them."""
    preset = preset_for(model)
    assert preset is not None
    example = preset.example_inputs(model.config)
    generator = torch.Generator().manual_seed(1)
    return {
        name: torch.randn(tensor.shape, generator=generator) if tensor.is_floating_point() else tensor
        for name, tensor in example.items()
    }


def output(model: nn.Module) -> torch.Tensor:
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return model(**inputs(base))[0]


def test_adapt_train_merge_save_and_load(family: Family, tmp_path: Path) -> None:
    plain = family.make()
    keys, before = list(plain.state_dict()), output(plain).detach()
    model = audiolora.adapt(plain, r={"conv": 4, _other(family): 2}, targets=family.targets)
    convs = [module for module in model.modules() if isinstance(module, LoraConv1d)]
    assert len(convs) == family.n_convs
    torch.testing.assert_close(output(model), before)

    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(2):  # at the first step only B has a gradient: B starts at zero
        optimizer.zero_grad()
        output(model).square().mean().backward()
        optimizer.step()
    assert all(conv.lora_A["default"].weight.grad.abs().sum() > 0 for conv in convs)
    after = output(model).detach()
    assert (after - before).abs().max() > 1e-3

    merged = model.merge_and_unload()
    assert list(merged.state_dict()) == keys
    torch.testing.assert_close(output(merged), after, rtol=1e-4, atol=1e-5)
    merged.save_pretrained(tmp_path)
    loaded = type(merged).from_pretrained(tmp_path).eval()
    torch.testing.assert_close(output(loaded), output(merged), rtol=1e-5, atol=1e-6)


def _other(family: Family) -> str:
    return "attention" if family.targets == "both" else "ffn"


def test_example_inputs_run(family: Family) -> None:
    model = family.make()
    preset = preset_for(model)
    assert preset is not None and model.config.model_type in preset.model_types
    assert model(**preset.example_inputs(model.config))[0].isfinite().all()


@pytest.mark.parametrize(
    "name, group", [(name, group) for name in FAMILIES for group in GROUPS if (name, group) != ("wavlm", "attention")]
)
def test_each_group_by_itself(name: str, group: str) -> None:
    model = FAMILIES[name].make()
    preset = preset_for(model)
    names = resolve_targets(model, group, preset)[group]
    kinds = {type(model.get_submodule(name)).__name__.removeprefix("Parametrized") for name in names}
    assert names and kinds == {"Conv1d" if group == "conv" else "Linear"}


def test_only_transformers_names_are_in_the_presets() -> None:
    known = transformers.models.auto.configuration_auto.CONFIG_MAPPING_NAMES
    assert [name for preset in PRESETS for name in preset.model_types if name not in known] == []


def test_whisper_reads_its_convolutions_settings_through_the_layer() -> None:
    """Its encoder takes the expected length from conv1.stride and conv2.stride."""
    model = audiolora.adapt(FAMILIES["whisper"].make(), r=2, targets="conv")
    encoder = model.get_base_model().model.encoder
    assert isinstance(encoder.conv2, LoraConv1d) and (encoder.conv1.stride, encoder.conv2.stride) == ((1,), (2,))
    with pytest.raises(ValueError, match="expects the mel input features to be of length 40"):
        encoder(torch.zeros(1, 8, 39))


def test_wav2vec2_s_feature_encoder_may_be_frozen_or_checkpointed() -> None:
    model = audiolora.adapt(FAMILIES["wav2vec2 layer norm"].make(), r=2).train()
    base = model.get_base_model()
    base.config.apply_spec_augment = False
    torch.manual_seed(0)
    output(model).square().mean().backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    base.gradient_checkpointing_enable({"use_reentrant": False})
    torch.manual_seed(0)
    output(model).square().mean().backward()
    assert expected
    for name, gradient in expected.items():
        torch.testing.assert_close(
            model.get_parameter(name).grad, gradient, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("targets", ["both", "attention", ["conv", "v_proj"], ["out_proj"]], ids=str)
def test_wavlm_s_attention_is_refused(targets: Any) -> None:
    model = FAMILIES["wavlm"].make()
    with pytest.raises(ValueError, match=r"on WavLM: its attention reads the weights.*targets=\['conv', 'ffn'\]"):
        audiolora.adapt(model, targets=targets)
    assert not any(hasattr(module, "lora_A") for module in model.modules())


@pytest.mark.parametrize("name", ["q_proj", "k_proj", "v_proj", "out_proj"])
def test_because_peft_s_adapter_there_does_nothing(name: str) -> None:
    model = FAMILIES["wavlm"].make()
    before = output(model)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=[name], init_lora_weights=False)).eval()
    assert torch.equal(output(adapted), before)


@pytest.mark.parametrize("name", ["conv1", "conv2"])
def test_peft_alone_cannot_adapt_whisper_s_convolutions(name: str) -> None:
    """What the README says of PEFT: Whisper reads the stride from the wrapper, which does not have it."""
    audiolora.disable()
    adapted = get_peft_model(FAMILIES["whisper"].make(), LoraConfig(r=2, target_modules=[name]))
    with pytest.raises(AttributeError, match="stride"):
        output(adapted)


@pytest.mark.parametrize("name", ["encoder.layer_norm", "fc1"])
def test_other_names_follow_the_rules_for_any_network(name: str) -> None:
    model = FAMILIES["hubert"].make()
    expected = "no adapter fits a LayerNorm" if "norm" in name else "has the groups conv, attention, ffn and modules"
    with pytest.raises(ValueError, match=expected):
        audiolora.adapt(model, targets=[name])


def test_a_preset_with_groups_of_its_own_invention_is_refused() -> None:
    example: Callable[[Any], dict[str, torch.Tensor]] = lambda config: {}  # noqa: E731
    with pytest.raises(ValueError, match=r"Mine: unknown groups \['mlp'\]; a preset may define"):
        Preset("Mine", ("mine",), {"mlp": ("fc",)}, example)
    with pytest.raises(ValueError, match=r"Mine: refuses \['ffn'\], which are none of its groups \['conv'\]"):
        Preset("Mine", ("mine",), {"conv": ("conv",)}, example, {"ffn": "because"})


def test_a_network_without_a_config_has_no_preset() -> None:
    assert preset_for(nn.Conv1d(1, 1, 1)) is None
