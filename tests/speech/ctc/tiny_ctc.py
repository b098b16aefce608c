"""Tiny random CTC models of every family, with processors as the hub's, and trainings small enough for a test."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
import transformers

from audiolora.speech.ctc.models import LoadedCtc
from audiolora.speech.ctc.settings import CtcTrainingSettings
from audiolora.speech.data.manifests import Utterance, read_utterances
from audiolora.speech.sound.channels import parse_channel
from audiolora.speech.training.clips import Clips
from tests.export.ctc_models import LAYER, OF_FAMILY, ctc_model, processor

WORDS = "amber birch cedar dune ember fern grove heron iris juniper".split()
MEL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
BERT = {
    **MEL, "feature_projection_input_dim": 32, "conv_depthwise_kernel_size": 5, "left_max_position_embeddings": 8,
    "right_max_position_embeddings": 8,
}  # fmt: skip
PARAKEET = {**MEL, "num_mel_bins": 16, "subsampling_conv_channels": 8, "conv_kernel_size": 5}

FAMILIES = ("Wav2Vec2BertForCTC", "ParakeetForCTC", *(name for name in OF_FAMILY if name != "SEWDForCTC"))
"""SEW-D has no gradient through its attention that is the same in two processes; it is tried for loss alone."""


def tiny_ctc(folder: Path, family: str = "Wav2Vec2ForCTC", *, layer_norm: bool = False, **changes: Any) -> LoadedCtc:
    """A random model with its processor: group norm and no mask, or layer norm and a mask."""
    folder.mkdir(parents=True, exist_ok=True)
    whole = processor(folder, masked=layer_norm)
    if family in ("Wav2Vec2BertForCTC", "ParakeetForCTC"):
        return LoadedCtc(*_of_mel(family, whole.tokenizer, changes), "drawn", family)
    norm: dict[str, Any] = {"feat_extract_norm": "layer"} if layer_norm else {}
    if layer_norm and family not in ("Data2VecAudioForCTC", "SEWForCTC"):
        norm = LAYER
    if family == "Data2VecAudioForCTC":
        norm = {}
    return LoadedCtc(ctc_model(family, **{**norm, **changes}), whole, "drawn", family)


def _of_mel(family: str, tokenizer: Any, changes: dict[str, Any]) -> tuple[Any, Any]:
    torch.manual_seed(0)
    size: dict[str, Any] = {"vocab_size": len(tokenizer), "pad_token_id": 0}
    if family == "ParakeetForCTC":
        encoder = transformers.ParakeetEncoderConfig(**PARAKEET)
        config: Any = transformers.ParakeetCTCConfig(encoder_config=encoder, **size, **changes)
        extractor: Any = transformers.ParakeetFeatureExtractor(feature_size=16)
    else:
        config = transformers.Wav2Vec2BertConfig(**BERT, **size, **changes)
        extractor = transformers.SeamlessM4TFeatureExtractor(feature_size=16, num_mel_bins=16)
    model = getattr(transformers, family)(config).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    kind = transformers.Wav2Vec2BertProcessor  # Parakeet's own refuses a tokenizer of letters
    return model, kind(feature_extractor=extractor, tokenizer=tokenizer)


def write_clips(folder: Path, n: int = 10, *, seconds: float = 0.6) -> Path:
    """A manifest of clips of growing length, each a tone in noise with a word of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    draw, rows = np.random.default_rng(0), []
    for index in range(n):
        t = np.arange(int(16_000 * seconds * (1 + index / n))) / 16_000
        tone = 0.3 * np.sin(2 * np.pi * (200 + 60 * index) * t) + 0.02 * draw.standard_normal(len(t))
        soundfile.write(folder / f"{index}.wav", tone.astype(np.float32), 16_000)
        text = f"{WORDS[index % 10]} {WORDS[index // 10]}" if n > 10 else WORDS[index]
        rows.append({"audio": f"{index}.wav", "text": text, "id": f"clip{index}"})
    manifest = folder / "clips.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return manifest


def clips_of(utterances: list[Utterance], channel: str = "clean") -> Clips:
    return Clips(utterances, parse_channel(channel))


@dataclass(frozen=True)
class Job:
    """One call of `train_ctc` on all clips of the manifest but three, which are the development part."""

    root: Path
    manifest: Path
    folder: Path
    settings: CtcTrainingSettings
    family: str = "Wav2Vec2ForCTC"
    layer_norm: bool = False
    new_head: bool = False
    changes: dict[str, Any] = field(default_factory=dict)

    def loaded(self) -> LoadedCtc:
        """The base; with a head of its own where it is new."""
        loaded = tiny_ctc(self.root, self.family, layer_norm=self.layer_norm, **self.changes)
        return LoadedCtc(loaded.model, loaded.processor, "drawn", "tiny", new_head=self.new_head)

    def parts(self) -> tuple[Clips, Clips]:
        clips = read_utterances(self.manifest)
        return clips_of(clips[3:], "noise20dB"), clips_of(clips[:3], "noise20dB")
