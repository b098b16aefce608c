"""CTranslate2's ``model.bin`` of a Whisper as transformers tensors.

The file, little-endian: version, name of the model's specification, its revision, number of variables; then for each
variable its name, rank, sizes, data type and bytes; then the aliases (one name for another's data). Strings carry
their length with a closing zero byte. CTranslate2 fuses the query, key and value projections of self-attention into
one matrix (key and value in cross-attention): here they are split again. Whisper's keys have no bias; the fused bias
holds zeros in their place.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Mapping

import numpy as np
import torch

from audiolora.speech.whisper.openai_format import ModelDimensions, WeightsError

# DataType of CTranslate2; 5 is bfloat16, which NumPy lacks
_DTYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}


class _Reader:
    """Reads one value after another and says where a file that is cut short ended."""

    def __init__(self, data: bytes, name: str) -> None:
        self.data, self.name, self.offset = data, name, 0

    def integer(self, code: str) -> int:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]

    def string(self) -> str:
        text = self.take(self.integer("H"))
        if not text.endswith(b"\0"):
            raise WeightsError(f"{self.name}: not a CTranslate2 model (no string at byte {self.offset - len(text)})")
        return text[:-1].decode("utf-8", errors="replace")

    def take(self, n_bytes: int) -> bytes:
        end = self.offset + n_bytes
        if end > len(self.data):
            raise WeightsError(
                f"{self.name}: ends at byte {len(self.data)}, but a value reaches to byte {end}; "
                "the file is cut short or not a CTranslate2 model: fetch it again"
            )
        part, self.offset = self.data[self.offset : end], end
        return part


def read_ctranslate2(data: bytes, name: str = "model.bin") -> tuple[str, dict[str, np.ndarray]]:
    """Read the variables of a CTranslate2 model.

    Args:
        data: the content of ``model.bin``.
        name: what error messages call it.

    Returns:
        The name of the specification (``WhisperSpec``) and every variable, aliases included.

    Raises:
        WeightsError: the data are cut short, go on after the end, or hold a type that is not supported.
    """
    reader = _Reader(data, name)
    reader.integer("I")  # version of the binary format
    specification = reader.string()
    reader.integer("I")  # revision of the specification
    variables: dict[str, np.ndarray] = {}
    for _ in range(reader.integer("I")):
        key = reader.string()
        shape = [reader.integer("I") for _ in range(reader.integer("B"))]
        code, n_bytes = reader.integer("B"), reader.integer("I")
        if code not in _DTYPES:
            raise WeightsError(f"{name}: {key} has data type {code}; convert the model with --quantization float16")
        dtype = np.dtype(_DTYPES[code])
        if math.prod(shape) * dtype.itemsize != n_bytes:
            raise WeightsError(f"{name}: {key} of shape {shape} and type {dtype} cannot have {n_bytes} bytes")
        variables[key] = np.frombuffer(reader.take(n_bytes), dtype=dtype).reshape(shape)
    for _ in range(reader.integer("I")):
        alias, key = reader.string(), reader.string()
        if key not in variables:
            raise WeightsError(f"{name}: {alias} stands for {key}, which the file lacks")
        variables[alias] = variables[key]
    if reader.offset != len(data):
        raise WeightsError(f"{name}: {len(data) - reader.offset} bytes are left after the last variable")
    return specification, variables


def whisper_from_ctranslate2(
    specification: str, variables: Mapping[str, np.ndarray]
) -> tuple[ModelDimensions, dict[str, torch.Tensor]]:
    """Rename and split a CTranslate2 Whisper's variables.

    Args:
        specification: the model's kind, from `read_ctranslate2`.
        variables: its float32 or float16 variables.

    Returns:
        The sizes, and the float32 tensors under their transformers names, as `openai_format.build_whisper` wants them.

    Raises:
        WeightsError: not a Whisper, quantised to integers, or a variable is missing.
    """
    if specification != "WhisperSpec":
        raise WeightsError(f"a CTranslate2 model of kind {specification!r}, not 'WhisperSpec': give a Whisper")
    weights = _Weights(variables)
    n_audio_layer, n_text_layer = weights.count_layers("encoder"), weights.count_layers("decoder")
    encoder, decoder = "model.encoder", "model.decoder"
    weights.affine(f"{encoder}.conv1", "encoder/conv1")
    weights.affine(f"{encoder}.conv2", "encoder/conv2")
    for side in ("encoder", "decoder"):
        weights.copy(f"model.{side}.embed_positions.weight", f"{side}/position_encodings/encodings")
        weights.norm(f"model.{side}.layer_norm", f"{side}/layer_norm")
    weights.copy(f"{decoder}.embed_tokens.weight", "decoder/embeddings/weight")
    for index in range(n_audio_layer):
        weights.layer(f"{encoder}.layers.{index}", f"encoder/layer_{index}", cross_attention=False)
    for index in range(n_text_layer):
        weights.layer(f"{decoder}.layers.{index}", f"decoder/layer_{index}", cross_attention=True)
    tensors = weights.tensors
    width, n_mels, _ = tensors[f"{encoder}.conv1.weight"].shape
    dims = ModelDimensions(
        n_mels=n_mels,
        n_audio_ctx=len(tensors[f"{encoder}.embed_positions.weight"]),
        n_audio_state=width,
        n_audio_head=weights.n_heads("encoder"),
        n_audio_layer=n_audio_layer,
        n_vocab=len(tensors[f"{decoder}.embed_tokens.weight"]),
        n_text_ctx=len(tensors[f"{decoder}.embed_positions.weight"]),
        n_text_state=width,
        n_text_head=weights.n_heads("decoder"),
        n_text_layer=n_text_layer,
    )
    return dims, tensors


class _Weights:
    """Collects transformers tensors out of CTranslate2 variables."""

    def __init__(self, variables: Mapping[str, np.ndarray]) -> None:
        self.variables = variables
        self.tensors: dict[str, torch.Tensor] = {}

    def get(self, key: str) -> torch.Tensor:
        if key not in self.variables:
            raise WeightsError(f"the CTranslate2 Whisper lacks the variable {key}; convert it again")
        value = self.variables[key]
        if value.dtype.kind != "f":
            raise WeightsError(
                f"{key} is quantised ({value.dtype}); its exact weights are lost: take the model in float16 or float32"
            )
        return torch.from_numpy(value.astype(np.float32))

    def copy(self, target: str, source: str) -> None:
        self.tensors[target] = self.get(source)

    def affine(self, target: str, source: str) -> None:
        self.copy(f"{target}.weight", f"{source}/weight")
        self.copy(f"{target}.bias", f"{source}/bias")

    def norm(self, target: str, source: str) -> None:
        self.copy(f"{target}.weight", f"{source}/gamma")
        self.copy(f"{target}.bias", f"{source}/beta")

    def fused(self, target: str, source: str, names: tuple[str, ...]) -> None:
        weights = self.get(f"{source}/weight").chunk(len(names))
        biases = self.get(f"{source}/bias").chunk(len(names))
        for name, weight, bias in zip(names, weights, biases, strict=True):
            self.tensors[f"{target}.{name}.weight"] = weight.contiguous()
            if name != "k_proj":
                self.tensors[f"{target}.{name}.bias"] = bias.contiguous()
            elif bias.any():
                raise WeightsError(f"{source}/bias: the keys have a bias, which Whisper's keys have not")

    def layer(self, target: str, source: str, *, cross_attention: bool) -> None:
        self.fused(f"{target}.self_attn", f"{source}/self_attention/linear_0", ("q_proj", "k_proj", "v_proj"))
        self.affine(f"{target}.self_attn.out_proj", f"{source}/self_attention/linear_1")
        self.norm(f"{target}.self_attn_layer_norm", f"{source}/self_attention/layer_norm")
        if cross_attention:
            self.affine(f"{target}.encoder_attn.q_proj", f"{source}/attention/linear_0")
            self.fused(f"{target}.encoder_attn", f"{source}/attention/linear_1", ("k_proj", "v_proj"))
            self.affine(f"{target}.encoder_attn.out_proj", f"{source}/attention/linear_2")
            self.norm(f"{target}.encoder_attn_layer_norm", f"{source}/attention/layer_norm")
        self.affine(f"{target}.fc1", f"{source}/ffn/linear_0")
        self.affine(f"{target}.fc2", f"{source}/ffn/linear_1")
        self.norm(f"{target}.final_layer_norm", f"{source}/ffn/layer_norm")

    def count_layers(self, side: str) -> int:
        return len({match[0] for key in self.variables if (match := re.match(rf"{side}/layer_\d+/", key))})

    def n_heads(self, side: str) -> int:
        key = f"{side}/num_heads"
        if key not in self.variables:
            raise WeightsError(f"the CTranslate2 Whisper lacks the variable {key}; convert it again")
        return int(self.variables[key])
