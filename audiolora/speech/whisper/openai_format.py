"""OpenAI's Whisper checkpoints (``.pt``) as transformers models.

A checkpoint is ``{"dims": …, "model_state_dict": …}``. The tensors are transformers' own under other names, so that
the conversion renames and never computes; the output projection is tied to the token embedding and not stored.
"""

from __future__ import annotations

import dataclasses
import io
import pickle
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import GenerationConfig, WhisperForConditionalGeneration, WhisperTokenizer


class WeightsError(ValueError):
    """Model weights that are missing, damaged or not Whisper's."""


@dataclasses.dataclass(frozen=True)
class ModelDimensions:
    """A Whisper's size; names and meaning are openai-whisper's.

    Raises:
        WeightsError: a size is not a positive integer, or a width is no multiple of its number of heads.
    """

    n_mels: int
    n_audio_ctx: int
    n_audio_state: int
    n_audio_head: int
    n_audio_layer: int
    n_vocab: int
    n_text_ctx: int
    n_text_state: int
    n_text_head: int
    n_text_layer: int

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if not isinstance(value, int) or value < 1:
                raise WeightsError(f"{name} must be a positive integer, got {value!r}")
        for side in ("audio", "text"):
            width, heads = getattr(self, f"n_{side}_state"), getattr(self, f"n_{side}_head")
            if width % heads:
                raise WeightsError(f"n_{side}_state = {width} must be a multiple of n_{side}_head = {heads}")
        if self.n_audio_state != self.n_text_state:
            raise WeightsError(
                f"n_audio_state = {self.n_audio_state} and n_text_state = {self.n_text_state} must be equal"
            )

    @property
    def is_multilingual(self) -> bool:
        """Whether the vocabulary is the multilingual one: openai-whisper's rule."""
        return self.n_vocab >= 51865

    @property
    def n_languages(self) -> int:
        """Language tokens in the vocabulary: 99, or 100 from large-v3 on."""
        return self.n_vocab - 51765 - int(self.is_multilingual)


# Replaced in this order: a later pair sees the result of the earlier ones.
_RENAMES = (
    ("blocks", "layers"),
    ("mlp.0", "fc1"),
    ("mlp.2", "fc2"),
    ("mlp_ln", "final_layer_norm"),
    (".attn.query", ".self_attn.q_proj"),
    (".attn.key", ".self_attn.k_proj"),
    (".attn.value", ".self_attn.v_proj"),
    (".attn_ln", ".self_attn_layer_norm"),
    (".attn.out", ".self_attn.out_proj"),
    (".cross_attn.query", ".encoder_attn.q_proj"),
    (".cross_attn.key", ".encoder_attn.k_proj"),
    (".cross_attn.value", ".encoder_attn.v_proj"),
    (".cross_attn_ln", ".encoder_attn_layer_norm"),
    (".cross_attn.out", ".encoder_attn.out_proj"),
    ("decoder.ln.", "decoder.layer_norm."),
    ("encoder.ln_post.", "encoder.layer_norm."),
    ("token_embedding", "embed_tokens"),
    ("positional_embedding", "embed_positions.weight"),
)


def rename_openai_key(key: str) -> str:
    """The transformers name of an openai-whisper parameter.

    Example:
        >>> rename_openai_key("decoder.blocks.0.cross_attn.key.weight")
        'model.decoder.layers.0.encoder_attn.k_proj.weight'
    """
    for old, new in _RENAMES:
        key = key.replace(old, new)
    return "model." + key


def openai_key(key: str) -> str:
    """The openai-whisper name of a transformers parameter; `rename_openai_key` backwards.

    Raises:
        WeightsError: a parameter that openai-whisper's model has no place for.

    Example:
        >>> openai_key("model.decoder.layers.0.encoder_attn.k_proj.weight")
        'decoder.blocks.0.cross_attn.key.weight'
    """
    name = key.removeprefix("model.")
    for openai, ours in reversed(_RENAMES):
        name = name.replace(ours, openai)
    if rename_openai_key(name) != key:
        raise WeightsError(f"{key}: openai-whisper's model has no parameter for it")
    return name


def openai_checkpoint(model: WhisperForConditionalGeneration) -> dict[str, dict[str, Any]]:
    """What openai-whisper's ``load_model`` reads: ``dims`` and ``model_state_dict``, in the model's own dtype.

    Args:
        model: a plain Whisper, no adapter on it.

    Raises:
        WeightsError: sizes or parameters that openai-whisper's model cannot have.
    """
    config = model.config
    heads = (config.encoder_attention_heads, config.decoder_attention_heads)
    dims = ModelDimensions(
        n_mels=config.num_mel_bins, n_audio_ctx=config.max_source_positions, n_audio_state=config.d_model,
        n_audio_head=heads[0], n_audio_layer=config.encoder_layers, n_vocab=config.vocab_size,
        n_text_ctx=config.max_target_positions, n_text_state=config.d_model, n_text_head=heads[1],
        n_text_layer=config.decoder_layers,
    )  # fmt: skip
    if {config.encoder_ffn_dim, config.decoder_ffn_dim} != {4 * config.d_model}:
        raise WeightsError(f"feed-forward layers must be 4 x {config.d_model} wide, got {config.encoder_ffn_dim}")
    if not torch.equal(model.proj_out.weight, model.model.decoder.embed_tokens.weight):
        raise WeightsError("proj_out: openai-whisper's output projection is the token embedding, and here they differ")
    tensors = {key: value.detach() for key, value in model.state_dict().items() if key != "proj_out.weight"}
    return {
        "dims": dataclasses.asdict(dims),
        "model_state_dict": {openai_key(key): value.cpu().contiguous() for key, value in tensors.items()},
    }


def read_openai_checkpoint(data: bytes, name: str = "checkpoint") -> tuple[ModelDimensions, dict[str, torch.Tensor]]:
    """Read an OpenAI checkpoint.

    Args:
        data: the file's content.
        name: what error messages call it.

    Returns:
        The sizes, and the float32 tensors under their transformers names.

    Raises:
        WeightsError: the file is damaged or is not a Whisper checkpoint.
    """
    try:
        checkpoint = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, KeyError, ValueError) as error:
        raise WeightsError(f"{name}: not a readable PyTorch checkpoint ({error}); fetch the file again") from error
    if not isinstance(checkpoint, Mapping) or not {"dims", "model_state_dict"} <= checkpoint.keys():
        found = sorted(checkpoint)[:5] if isinstance(checkpoint, Mapping) else type(checkpoint).__name__
        raise WeightsError(
            f"{name}: not an OpenAI Whisper checkpoint, which holds 'dims' and 'model_state_dict'; found {found}; "
            "give a file that openai-whisper saved, or a directory in the transformers format"
        )
    try:
        dims = ModelDimensions(**checkpoint["dims"])
    except (TypeError, WeightsError) as error:
        raise WeightsError(f"{name}: 'dims' are not Whisper's: {error}") from error
    return dims, {rename_openai_key(key): value.float() for key, value in checkpoint["model_state_dict"].items()}


def build_whisper(dims: ModelDimensions, tensors: Mapping[str, torch.Tensor]) -> WhisperForConditionalGeneration:
    """A transformers Whisper of the given sizes and weights, float32, in eval mode.

    Args:
        dims: the model's sizes.
        tensors: every parameter under its transformers name (``model.encoder.conv1.weight``, …) but the tied
            output projection.

    Raises:
        WeightsError: tensors are missing, unknown or of another shape; all of them are listed.
    """
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    first_special = 50257 if dims.is_multilingual else 50256  # <|endoftext|> follows the vocabulary's last rank
    config = WhisperConfig(
        vocab_size=dims.n_vocab,
        num_mel_bins=dims.n_mels,
        d_model=dims.n_audio_state,
        max_source_positions=dims.n_audio_ctx,
        max_target_positions=dims.n_text_ctx,
        encoder_layers=dims.n_audio_layer,
        encoder_attention_heads=dims.n_audio_head,
        encoder_ffn_dim=4 * dims.n_audio_state,
        decoder_layers=dims.n_text_layer,
        decoder_attention_heads=dims.n_text_head,
        decoder_ffn_dim=4 * dims.n_text_state,
        pad_token_id=first_special,
        bos_token_id=first_special,
        eos_token_id=first_special,
        decoder_start_token_id=first_special + 1,
        begin_suppress_tokens=[220, first_special],
    )
    model = WhisperForConditionalGeneration(config).float()
    _check_tensors(model, tensors)
    model.load_state_dict(dict(tensors), strict=False)
    model.tie_weights()
    return model.eval()


def _check_tensors(model: WhisperForConditionalGeneration, tensors: Mapping[str, torch.Tensor]) -> None:
    expected = {key: tuple(value.shape) for key, value in model.state_dict().items() if key != "proj_out.weight"}
    found = {key: tuple(value.shape) for key, value in tensors.items()}
    wrong = [f"{key}: missing, expected {shape}" for key, shape in expected.items() if key not in found]
    wrong += [f"{key}: unknown, found {shape}" for key, shape in found.items() if key not in expected]
    wrong += [
        f"{key}: expected {shape}, found {found[key]}"
        for key, shape in expected.items()
        if key in found and found[key] != shape
    ]
    if wrong:
        shown = "\n  ".join(wrong[:20]) + (f"\n  … and {len(wrong) - 20} more" if len(wrong) > 20 else "")
        raise WeightsError(f"{len(wrong)} tensors do not fit this Whisper:\n  {shown}")


def generation_config(
    dims: ModelDimensions, tokenizer: WhisperTokenizer, alignment_heads: Sequence[tuple[int, int]] | None = None
) -> GenerationConfig:
    """Whisper's own decoding rules: what is suppressed, which tokens name languages and tasks.

    Args:
        dims: the model's sizes.
        tokenizer: the model's tokenizer.
        alignment_heads: (layer, head) of the cross-attention heads that follow time; only word timestamps need them.
    """
    from transformers import GenerationConfig

    from audiolora.speech.whisper.whisper_tokenizer import special_tokens, suppressed_tokens

    def token_id(token: str) -> int:
        return tokenizer.convert_tokens_to_ids(token)

    end = tokenizer.eos_token_id
    extra: dict[str, object] = {}
    if dims.is_multilingual:
        languages = special_tokens(dims.n_languages)[2 : 2 + dims.n_languages]
        extra["lang_to_id"] = {token: token_id(token) for token in languages}
        extra["task_to_id"] = {task: token_id(f"<|{task}|>") for task in ("transcribe", "translate")}
    if alignment_heads is not None:
        extra["alignment_heads"] = [list(pair) for pair in alignment_heads]
    return GenerationConfig(
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        decoder_start_token_id=token_id("<|startoftranscript|>"),
        max_length=dims.n_text_ctx,
        suppress_tokens=suppressed_tokens(tokenizer),
        begin_suppress_tokens=[*tokenizer(" ", add_special_tokens=False).input_ids, end],
        is_multilingual=dims.is_multilingual,
        no_timestamps_token_id=token_id("<|notimestamps|>"),
        prev_sot_token_id=token_id("<|startofprev|>"),
        max_initial_timestamp_index=50,
        return_timestamps=False,
        **extra,
    )
