"""Which adapted modules of real models take part: WavLM's attention does not, LFM2's convolution does."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from tests.models.tiny_settings import LFM2, WAVE, WHISPER
from tests.test_participation import adapted, hooks, named


def transformers_model(kind: str, settings: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    cls = getattr(transformers, kind)
    return cls(cls.config_class(**settings)).eval()


def test_wavlm_s_attention_reads_past_peft_s_layers() -> None:
    model = adapted(["q_proj", "conv"], transformers_model("WavLMModel", WAVE))
    with named("encoder.layers.0.attention.q_proj"):
        model(torch.zeros(1, 320))


def test_lfm2_reads_its_convolution_s_weight() -> None:
    model = adapted(["conv.conv", "in_proj"], transformers_model("Lfm2ForCausalLM", LFM2))
    with named():
        model.generate(input_ids=torch.tensor([[3, 4, 5]]), max_new_tokens=2)
    assert hooks(model) == 0


def test_whisper_s_generate_runs_the_encoder_by_itself() -> None:
    settings = WHISPER | {"suppress_tokens": None, "begin_suppress_tokens": None}
    model = adapted(["conv1", "conv2", "q_proj"], transformers_model("WhisperForConditionalGeneration", settings))
    with named():
        model.generate(input_features=torch.zeros(1, 8, 40), max_new_tokens=2)
    assert hooks(model) == 0


def test_wav2vec2_in_training_drops_layers() -> None:
    settings = WAVE | {"num_hidden_layers": 2, "layerdrop": 0.9, "apply_spec_augment": False}
    model = adapted(["conv", "v_proj"], transformers_model("Wav2Vec2Model", settings)).train()
    with named():
        for _ in range(4):
            model(torch.zeros(1, 320))
    model.eval()
    with named():
        model(torch.zeros(1, 320))
    assert hooks(model) == 0
