"""CTranslate2's Whisper files: a file written here by the format's description, and damaged ones."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import torch
from transformers import WhisperConfig, WhisperForConditionalGeneration

from audiolora.speech.whisper.ctranslate2_format import read_ctranslate2, whisper_from_ctranslate2
from audiolora.speech.whisper.openai_format import WeightsError, build_whisper

CODES = {"float32": 0, "int8": 1, "int16": 2, "int32": 3, "float16": 4}


def text(value: str) -> bytes:
    return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"


def as_file(variables: dict[str, np.ndarray], aliases: dict[str, str], spec: str = "WhisperSpec") -> bytes:
    parts = [struct.pack("<I", 6), text(spec), struct.pack("<II", 3, len(variables))]
    for name, value in variables.items():
        parts += [text(name), struct.pack("<B", value.ndim), *(struct.pack("<I", size) for size in value.shape)]
        parts += [struct.pack("<BI", CODES[value.dtype.name], value.nbytes), value.tobytes()]
    parts.append(struct.pack("<I", len(aliases)))
    parts += [text(alias) + text(name) for alias, name in aliases.items()]
    return b"".join(parts)


def random_whisper() -> WhisperForConditionalGeneration:
    torch.manual_seed(0)
    config = WhisperConfig(
        vocab_size=51865,
        d_model=8,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        max_source_positions=20,
        max_target_positions=12,
        pad_token_id=50257,
        bos_token_id=50257,
        eos_token_id=50257,
        decoder_start_token_id=50258,
    )
    model = WhisperForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    return model.half().float().eval()


def fuse(model: WhisperForConditionalGeneration) -> dict[str, np.ndarray]:
    """CTranslate2's variables of a transformers Whisper, float16."""
    state = {key.removeprefix("model."): value for key, value in model.state_dict().items()}
    out: dict[str, np.ndarray] = {}

    def put(name: str, value: torch.Tensor) -> None:
        out[name] = value.numpy().astype(np.float16)

    def affine(name: str, *sources: str) -> None:
        put(f"{name}/weight", torch.cat([state[f"{source}.weight"] for source in sources]))
        biases = [state.get(f"{s}.bias", torch.zeros(len(state[f"{s}.weight"]))) for s in sources]
        put(f"{name}/bias", torch.cat(biases))

    def norm(name: str, source: str) -> None:
        put(f"{name}/gamma", state[f"{source}.weight"])
        put(f"{name}/beta", state[f"{source}.bias"])

    affine("encoder/conv1", "encoder.conv1")
    affine("encoder/conv2", "encoder.conv2")
    put("decoder/embeddings/weight", state["decoder.embed_tokens.weight"])
    for side, n_layers in (("encoder", 1), ("decoder", 2)):
        put(f"{side}/position_encodings/encodings", state[f"{side}.embed_positions.weight"])
        norm(f"{side}/layer_norm", f"{side}.layer_norm")
        for i in range(n_layers):
            a, b = f"{side}/layer_{i}", f"{side}.layers.{i}"
            affine(f"{a}/self_attention/linear_0", *(f"{b}.self_attn.{x}_proj" for x in "qkv"))
            affine(f"{a}/self_attention/linear_1", f"{b}.self_attn.out_proj")
            norm(f"{a}/self_attention/layer_norm", f"{b}.self_attn_layer_norm")
            if side == "decoder":
                affine(f"{a}/attention/linear_0", f"{b}.encoder_attn.q_proj")
                affine(f"{a}/attention/linear_1", f"{b}.encoder_attn.k_proj", f"{b}.encoder_attn.v_proj")
                affine(f"{a}/attention/linear_2", f"{b}.encoder_attn.out_proj")
                norm(f"{a}/attention/layer_norm", f"{b}.encoder_attn_layer_norm")
            affine(f"{a}/ffn/linear_0", f"{b}.fc1")
            affine(f"{a}/ffn/linear_1", f"{b}.fc2")
            norm(f"{a}/ffn/layer_norm", f"{b}.final_layer_norm")
    out["encoder/num_heads"], out["decoder/num_heads"] = np.array(4, np.int16), np.array(2, np.int16)
    return out


def test_converted_model_computes_the_same() -> None:
    reference = random_whisper()
    data = as_file(fuse(reference), {"decoder/projection/weight": "decoder/embeddings/weight"})
    spec, variables = read_ctranslate2(data)
    assert variables["decoder/projection/weight"] is variables["decoder/embeddings/weight"]
    dims, tensors = whisper_from_ctranslate2(spec, variables)
    assert (dims.n_audio_head, dims.n_text_head, dims.n_audio_layer, dims.n_text_layer) == (4, 2, 1, 2)
    model = build_whisper(dims, tensors)
    features, ids = torch.randn(1, 80, 40), torch.tensor([[50258, 50274, 50359, 50363]])
    with torch.no_grad():
        found = model(input_features=features, decoder_input_ids=ids).logits
        expected = reference(input_features=features, decoder_input_ids=ids).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_scalars_integers_and_aliases_are_read() -> None:
    variables = {"a": np.arange(6, dtype=np.int32).reshape(2, 3), "b": np.array(-3, np.int8)}
    spec, found = read_ctranslate2(as_file(variables, {"c": "a"}, spec="Other"))
    assert spec == "Other"
    np.testing.assert_array_equal(found["c"], variables["a"])
    assert found["b"].shape == () and found["b"] == -3


SMALL = as_file({"a": np.zeros(3, np.float32)}, {"c": "a"})


@pytest.mark.parametrize("length", range(len(SMALL)))
def test_a_file_cut_anywhere_is_refused(length: int) -> None:
    with pytest.raises(WeightsError, match=r"model\.bin"):
        read_ctranslate2(SMALL[:length])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (SMALL + b"x", "1 bytes are left"),
        (as_file({"a": np.zeros(3, np.float32)}, {"c": "z"}), "c stands for z, which the file lacks"),
        (SMALL.replace(struct.pack("<BI", 0, 12), struct.pack("<BI", 5, 12)), "a has data type 5"),
        (SMALL.replace(struct.pack("<BI", 0, 12), struct.pack("<BI", 4, 12)), "cannot have 12 bytes"),
        (b"PK\x03\x04" * 100, "cut short or not a CTranslate2 model|not a CTranslate2 model"),
    ],
)
def test_a_damaged_file_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        read_ctranslate2(data)


def test_what_is_no_float_whisper_is_refused() -> None:
    variables = fuse(random_whisper())
    with pytest.raises(WeightsError, match="kind 'TransformerSpec'"):
        whisper_from_ctranslate2("TransformerSpec", variables)
    quantised = {**variables, "encoder/conv1/weight": np.zeros((8, 80, 3), np.int8)}
    with pytest.raises(WeightsError, match="encoder/conv1/weight is quantised \\(int8\\)"):
        whisper_from_ctranslate2("WhisperSpec", quantised)
    del variables["decoder/layer_1/ffn/linear_0/bias"]
    with pytest.raises(WeightsError, match="lacks the variable decoder/layer_1/ffn/linear_0/bias"):
        whisper_from_ctranslate2("WhisperSpec", variables)
    biased = fuse(random_whisper())
    biased["encoder/layer_0/self_attention/linear_0/bias"][8:16] = 1
    with pytest.raises(WeightsError, match="the keys have a bias"):
        whisper_from_ctranslate2("WhisperSpec", biased)
