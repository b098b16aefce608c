"""OpenAI checkpoints: names, sizes, outputs, decoding rules, damaged files."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from transformers import WhisperConfig, WhisperForConditionalGeneration

from audiolora.speech.whisper.openai_format import (
    ModelDimensions,
    WeightsError,
    build_whisper,
    generation_config,
    openai_checkpoint,
    openai_key,
    read_openai_checkpoint,
    rename_openai_key,
)
from audiolora.speech.whisper.whisper_tokenizer import build_tokenizer

DIMS = {
    "n_mels": 80,
    "n_audio_ctx": 20,
    "n_audio_state": 8,
    "n_audio_head": 2,
    "n_audio_layer": 1,
    "n_vocab": 51864,
    "n_text_ctx": 12,
    "n_text_state": 8,
    "n_text_head": 2,
    "n_text_layer": 2,
}

# openai-whisper's whisper/model.py, read by hand: MultiHeadAttention, ResidualAttentionBlock, AudioEncoder, TextDecoder
ATTENTION = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "out_proj"}


def openai_names(model: WhisperForConditionalGeneration) -> dict[str, torch.Tensor]:
    """A transformers Whisper's tensors under openai-whisper's names."""
    state = model.state_dict()
    result = {}

    def take(theirs: str, ours: str, bias: bool = True) -> None:
        for kind in ("weight", "bias") if bias else ("weight",):
            result[f"{theirs}.{kind}"] = state[f"model.{ours}.{kind}"]

    take("encoder.conv1", "encoder.conv1")
    take("encoder.conv2", "encoder.conv2")
    take("encoder.ln_post", "encoder.layer_norm")
    take("decoder.ln", "decoder.layer_norm")
    take("decoder.token_embedding", "decoder.embed_tokens", bias=False)
    for side in ("encoder", "decoder"):
        result[f"{side}.positional_embedding"] = state[f"model.{side}.embed_positions.weight"]
        for i in range(getattr(model.config, f"{side}_layers")):
            theirs, ours = f"{side}.blocks.{i}", f"{side}.layers.{i}"
            kinds = {"attn": "self_attn"} | ({"cross_attn": "encoder_attn"} if side == "decoder" else {})
            for their_kind, our_kind in kinds.items():
                for a, b in ATTENTION.items():
                    take(f"{theirs}.{their_kind}.{a}", f"{ours}.{our_kind}.{b}", bias=a != "key")
                take(f"{theirs}.{their_kind}_ln", f"{ours}.{our_kind}_layer_norm")
            take(f"{theirs}.mlp.0", f"{ours}.fc1")
            take(f"{theirs}.mlp.2", f"{ours}.fc2")
            take(f"{theirs}.mlp_ln", f"{ours}.final_layer_norm")
    return result


def random_whisper() -> WhisperForConditionalGeneration:
    torch.manual_seed(0)
    config = WhisperConfig(
        vocab_size=51864,
        d_model=8,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        max_source_positions=20,
        max_target_positions=12,
    )
    return WhisperForConditionalGeneration(config).eval()


def checkpoint(tensors: dict[str, torch.Tensor], dims: dict[str, Any] = DIMS) -> bytes:
    buffer = io.BytesIO()
    torch.save({"dims": dims, "model_state_dict": tensors}, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_converted_model_computes_the_same(dtype: torch.dtype) -> None:
    reference = random_whisper().to(dtype).float()  # weights that survive being stored in dtype
    tensors = {key: value.to(dtype) for key, value in openai_names(reference).items()}
    model = build_whisper(*read_openai_checkpoint(checkpoint(tensors)))
    assert not model.training
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    features, ids = torch.randn(2, 80, 40), torch.tensor([[50257, 50362, 5], [50257, 50362, 9]])
    with torch.no_grad():
        found = model(input_features=features, decoder_input_ids=ids).logits
        expected = reference(input_features=features, decoder_input_ids=ids).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert model.proj_out.weight is model.model.decoder.embed_tokens.weight


def test_english_only_and_multilingual_ids() -> None:
    english = ModelDimensions(**DIMS)
    assert (english.is_multilingual, english.n_languages) == (False, 99)
    multilingual = ModelDimensions(**{**DIMS, "n_vocab": 51865})
    assert (multilingual.is_multilingual, multilingual.n_languages) == (True, 99)
    assert ModelDimensions(**{**DIMS, "n_vocab": 51866}).n_languages == 100
    model = build_whisper(*read_openai_checkpoint(checkpoint(openai_names(random_whisper()))))
    assert (model.config.eos_token_id, model.config.decoder_start_token_id) == (50256, 50257)


def test_rename_keeps_layer_norms_and_attention_apart() -> None:
    assert (
        rename_openai_key("decoder.blocks.3.cross_attn_ln.bias")
        == "model.decoder.layers.3.encoder_attn_layer_norm.bias"
    )
    assert rename_openai_key("decoder.blocks.3.attn_ln.bias") == "model.decoder.layers.3.self_attn_layer_norm.bias"
    assert rename_openai_key("encoder.blocks.0.attn.key.weight") == "model.encoder.layers.0.self_attn.k_proj.weight"


def test_a_whisper_becomes_openais_checkpoint() -> None:
    model = random_whisper()
    made = openai_checkpoint(model)
    assert made["dims"] == DIMS
    assert made["model_state_dict"].keys() == openai_names(model).keys()
    for name, expected in openai_names(model).items():
        torch.testing.assert_close(made["model_state_dict"][name], expected, rtol=0, atol=0)


def test_what_openais_model_has_no_place_for_is_named() -> None:
    with pytest.raises(WeightsError, match="blocks.*no parameter for it"):
        openai_key("model.encoder.blocks.0.fc1.weight")
    untied = random_whisper()
    untied.proj_out.weight = torch.nn.Parameter(untied.proj_out.weight.detach() + 1)
    with pytest.raises(WeightsError, match="proj_out"):
        openai_checkpoint(untied)
    narrow = random_whisper()
    narrow.config.encoder_ffn_dim = 16
    with pytest.raises(WeightsError, match="must be 4 x 8 wide, got 16"):
        openai_checkpoint(narrow)


def test_every_wrong_tensor_is_named_at_once() -> None:
    tensors = openai_names(random_whisper())
    del tensors["encoder.conv1.bias"]
    tensors["decoder.ln.weight"] = torch.zeros(9)
    tensors["encoder.extra"] = torch.zeros(3)
    with pytest.raises(WeightsError) as error:
        build_whisper(*read_openai_checkpoint(checkpoint(tensors)))
    text = str(error.value)
    assert "3 tensors" in text
    assert "model.encoder.conv1.bias: missing, expected (8,)" in text
    assert "model.decoder.layer_norm.weight: expected (8,), found (9,)" in text
    assert "model.encoder.extra: unknown" in text


def _saved(content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a readable PyTorch checkpoint"),
        (b"PK\x03\x04 nothing", "not a readable PyTorch checkpoint"),
        (checkpoint({})[:300], "not a readable PyTorch checkpoint"),
        (_saved({"state_dict": {}}), "'dims' and 'model_state_dict'; found \\['state_dict'\\]"),
        (_saved([1]), "found list"),
        (checkpoint({}, {**DIMS, "n_mels": 0}), "n_mels must be a positive integer, got 0"),
        (checkpoint({}, {**DIMS, "n_audio_head": 3}), "n_audio_state = 8 must be a multiple of n_audio_head = 3"),
        (checkpoint({}, {**DIMS, "n_text_state": 10}), "must be equal"),
        (checkpoint({}, {"n_mels": 80}), "missing 9 required"),
    ],
)
def test_damaged_file_is_named(data: bytes, message: str) -> None:
    with pytest.raises(WeightsError, match=message) as error:
        read_openai_checkpoint(data, "speech/tiny.pt")
    assert "speech/tiny.pt" in str(error.value)


def test_a_pickle_with_code_is_not_run() -> None:
    with pytest.raises(WeightsError, match="not a readable PyTorch checkpoint"):
        read_openai_checkpoint(_saved({"dims": DIMS, "model_state_dict": io.BytesIO}))


def test_generation_config_of_a_multilingual_model() -> None:
    ranks = {bytes([byte]): byte for byte in range(256)}
    dims = ModelDimensions(**{**DIMS, "n_vocab": 51865})
    tokenizer = build_tokenizer(ranks)
    config = generation_config(dims, tokenizer, [(0, 1)])
    assert config.is_multilingual and len(config.lang_to_id) == 99
    assert config.lang_to_id["<|it|>"] == 256 + 2 + 15  # the sixteenth language of openai-whisper's list
    assert config.task_to_id == {"transcribe": 256 + 102, "translate": 256 + 101}
    assert config.decoder_start_token_id == 257 and config.no_timestamps_token_id == 256 + 106
    assert config.begin_suppress_tokens == [ord(" "), 256]
    assert config.alignment_heads == [[0, 1]] and config.max_length == 12
    english = generation_config(ModelDimensions(**DIMS), tokenizer)
    assert not english.is_multilingual and not hasattr(english, "lang_to_id")
