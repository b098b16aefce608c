"""Tiny random CTC models of every family, the two that hear log-mel features too, with processors and inputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers

from tests.export.ctc_models import LETTERS, OF_FAMILY, SIZES, ctc_model

PARAKEET_ENCODER = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "conv_kernel_size": 5,
    "subsampling_conv_channels": 8,
    "num_mel_bins": 16,
    "initializer_range": 0.2,
    "scale_input": False,
}
BERT = {
    "feature_projection_input_dim": 160,
    "conv_depthwise_kernel_size": 5,
    "position_embeddings_type": "relative_key",
}
FAMILIES = (*OF_FAMILY, "Wav2Vec2BertForCTC", "ParakeetForCTC")
"""All that `load_ctc` takes."""

ATTENTION_REFUSED = ("WavLMForCTC",)


def tiny_ctc(family: str = "Wav2Vec2ForCTC", **changes: Any) -> Any:
    """A model in eval mode, the same numbers at each call."""
    if family in OF_FAMILY:
        return ctc_model(family, **changes)
    torch.manual_seed(0)
    kind = getattr(transformers, family)
    if family == "Wav2Vec2BertForCTC":
        return kind(kind.config_class(**SIZES | BERT | changes)).eval()
    encoder = transformers.ParakeetEncoderConfig(**PARAKEET_ENCODER)
    settings = {"vocab_size": len(LETTERS), "pad_token_id": 0, "encoder_config": encoder.to_dict()}
    return kind(kind.config_class(**settings | changes)).eval()


def sound(model: Any, n: int = 2) -> dict[str, torch.Tensor]:
    """The preset's example inputs as noise, ``n`` of them."""
    from audiolora.presets import preset_for

    preset, generator = preset_for(model), torch.Generator().manual_seed(1)
    assert preset is not None
    example = preset.example_inputs(model.config)
    return {name: torch.randn((n, *tensor.shape[1:]), generator=generator) for name, tensor in example.items()}


def save_base(folder: Path, family: str = "Wav2Vec2ForCTC", letters: tuple[str, ...] = LETTERS, **changes: Any) -> Any:
    """A model's folder as ``save_pretrained`` writes it, with extractor and tokenizer; returns the model."""
    model = tiny_ctc(family, **{"vocab_size": len(letters)} | changes)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    extractor: Any = transformers.Wav2Vec2FeatureExtractor()
    if family == "Wav2Vec2BertForCTC":
        extractor = transformers.SeamlessM4TFeatureExtractor()
    if family == "ParakeetForCTC":
        extractor = transformers.ParakeetFeatureExtractor(feature_size=PARAKEET_ENCODER["num_mel_bins"])
    tokenizer = pieces(letters) if family == "ParakeetForCTC" else letter_tokenizer(folder, letters)
    tokenizer.save_pretrained(folder)
    extractor.save_pretrained(folder)
    return model


def letter_tokenizer(folder: Path, letters: tuple[str, ...]) -> Any:
    vocabulary = folder / "letters.json"
    vocabulary.write_text(json.dumps({letter: i for i, letter in enumerate(letters)}), encoding="utf-8")
    tokenizer = transformers.Wav2Vec2CTCTokenizer(str(vocabulary))
    vocabulary.unlink()
    return tokenizer


def pieces(letters: tuple[str, ...]) -> Any:
    """Parakeet's kind of tokenizer, whose pieces of words are letters here."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    made = Tokenizer(models.BPE({token: i for i, token in enumerate(letters)}, [], unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Metaspace(replacement="|")
    made.decoder = decoders.Metaspace(replacement="|")
    return transformers.ParakeetTokenizer(tokenizer_object=made, pad_token="<pad>", unk_token="<unk>")
