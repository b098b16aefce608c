"""A complete local Whisper of a few thousand random weights, in the layout that `from_pretrained` reads."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperProcessor

from audiolora.speech.whisper.openai_format import ModelDimensions, generation_config
from audiolora.speech.whisper.whisper_tokenizer import build_tokenizer, special_tokens

# Every byte, and each letter and two signs after a space, so that " hello" takes five tokens.
_VOCABULARY = [bytes([byte]) for byte in range(256)] + [
    b" " + bytes([letter]) for letter in b"abcdefghijklmnopqrstuvwxyz-'"
]


def tiny_whisper(path: Path, multilingual: bool = False, *, d_model: int = 16, layers: int = 1, seed: int = 0) -> None:
    """Write config, weights, tokenizer, feature extractor and generation config into the directory `path`.

    It takes the real model's 80 mel bands and up to 3000 frames, and knows the real special tokens. Its texts are
    letters that depend on the audio; another `seed` gives other weights.
    """
    tokenizer = build_tokenizer({token: rank for rank, token in enumerate(_VOCABULARY)}, spelling={"colour": "color"})
    dims = ModelDimensions(80, 1500, d_model, 2, layers, len(tokenizer), 448, d_model, 2, layers)
    generation = generation_config(dims, tokenizer)
    letters = {token for token, piece in enumerate(_VOCABULARY) if piece.isascii() and piece.strip().isalpha()}
    generation.suppress_tokens = sorted({*range(len(tokenizer))} - letters - {tokenizer.eos_token_id})
    if multilingual:  # what tells a real one, the size of its vocabulary, is beyond a tiny model
        generation.is_multilingual = True
        generation.lang_to_id = {token: tokenizer.convert_tokens_to_ids(token) for token in special_tokens()[2:101]}
        generation.task_to_id = {t: tokenizer.convert_tokens_to_ids(f"<|{t}|>") for t in ("transcribe", "translate")}
    torch.manual_seed(seed)
    end = tokenizer.eos_token_id
    model = WhisperForConditionalGeneration(
        WhisperConfig(
            vocab_size=len(tokenizer),
            d_model=d_model,
            encoder_layers=layers,
            decoder_layers=layers,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=2 * d_model,
            decoder_ffn_dim=2 * d_model,
            init_std=0.3,  # so large that the texts depend on the audio
            pad_token_id=end,
            bos_token_id=end,
            eos_token_id=end,
            decoder_start_token_id=end + 1,
        )
    )
    model.generation_config = generation
    model.save_pretrained(path)
    WhisperProcessor(WhisperFeatureExtractor(), tokenizer).save_pretrained(path)
    spelling = json.dumps(tokenizer.english_spelling_normalizer)
    (path / "normalizer.json").write_text(spelling, encoding="utf-8")  # from_pretrained reads it, nothing writes it
