"""Tiny random CTC models of each family, with their processors, adapters as after training, and speech."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from peft import LoraConfig, get_peft_model

import audiolora
from tests.export.networks import randomise

LETTERS = ("<pad>", "<s>", "</s>", "<unk>", "|", *"abcdefghijklmnopqrstuvwxyz'")
SIZES: dict[str, Any] = {
    "vocab_size": len(LETTERS),
    "pad_token_id": 0,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "conv_dim": (16,) * 4,
    "conv_stride": (5, 4, 4, 4),
    "conv_kernel": (10, 4, 4, 3),
    "num_feat_extract_layers": 4,
    "num_conv_pos_embeddings": 128,
    "num_conv_pos_embedding_groups": 4,
    "initializer_range": 0.2,
}
"""A frame each 320 samples, as in the models that are in use, with less to it."""

OF_FAMILY: dict[str, dict[str, Any]] = {
    "Wav2Vec2ForCTC": {},
    "HubertForCTC": {},
    "WavLMForCTC": {"num_buckets": 32, "max_bucket_distance": 60},
    "Data2VecAudioForCTC": {"num_conv_pos_embeddings": 3, "conv_pos_kernel_size": 19},
    "SEWForCTC": {"squeeze_factor": 2},
    "SEWDForCTC": {"squeeze_factor": 2},
    "UniSpeechForCTC": {},
    "UniSpeechSatForCTC": {},
    "Wav2Vec2ConformerForCTC": {"conv_depthwise_kernel_size": 5},
}
LAYER = {"feat_extract_norm": "layer", "do_stable_layer_norm": True}


def ctc_model(family: str = "Wav2Vec2ForCTC", **changes: Any) -> Any:
    """The same numbers at each call."""
    torch.manual_seed(0)
    kind = getattr(transformers, family)
    return kind(kind.config_class(**SIZES | OF_FAMILY[family] | changes)).eval()


def processor(folder: Path, *, masked: bool = False, letters: tuple[str, ...] = LETTERS, **how: Any) -> Any:
    """A ``Wav2Vec2Processor``; ``how`` is the tokenizer's."""
    vocabulary = folder / "vocab.json"
    vocabulary.write_text(json.dumps({letter: i for i, letter in enumerate(letters)}), encoding="utf-8")
    return transformers.Wav2Vec2Processor(
        feature_extractor=transformers.Wav2Vec2FeatureExtractor(return_attention_mask=masked),
        tokenizer=transformers.Wav2Vec2CTCTokenizer(str(vocabulary), **how),
    )


def attention(family: str) -> list[str]:
    """What adapters of its attention are put in; WavLM and SEW-D do not call all of theirs."""
    names = {
        "WavLMForCTC": [],
        "SEWDForCTC": ["query_proj", "value_proj"],
        "Wav2Vec2ConformerForCTC": ["linear_q", "linear_v"],
    }
    return names.get(family, ["q_proj", "v_proj"])


def adapted(model: Any, *names: str, **how: Any) -> Any:
    """``anna`` is LoRA with a head of its own, ``bob`` DoRA: in every convolution and the attention."""
    targets = ["conv", *attention(type(model).__name__)]
    methods = {"anna": {"r": 2, "modules_to_save": ["lm_head"]}, "bob": {"r": 3, "use_dora": True}}
    with audiolora.enabled():
        for name in names or methods:
            config = LoraConfig(**{"lora_alpha": 4, "target_modules": targets, **methods[name], **how})
            if hasattr(model, "peft_config"):
                model.add_adapter(name, config)
            else:
                model = get_peft_model(model, config, adapter_name=name)
    randomise(model)
    return model.eval()


def clips(*lengths: int, seed: int = 5) -> list[np.ndarray]:
    """(samples,) float32 each: noise whose loudness goes up and down, off zero."""
    draw = np.random.default_rng(seed)
    return [(0.02 + 0.2 * np.sin(np.arange(n) / 700) * draw.standard_normal(n)).astype(np.float32) for n in lengths]
