"""Whisper as two graphs: the encoder, run once a clip, and the decoder, run once for the prompt and once a token.

``encoder`` gives the keys and values of every decoder layer's cross-attention, not hidden states: they depend on the
audio alone, so that no step computes them again. ``decoder`` takes its self-attention's keys and values as states and
gives them back longer; how many there are is the position of its first token, so that an empty cache is the start.

Both are transformers' own modules in transformers' own order, without its checks of length: the encoder takes any
even number of frames, which is what `speech.context.audio_context` makes of it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from audiolora.export.parts import Part
from audiolora.export.whisper_settings import DECODER, ENCODER, FEATURES, TOKENS
from audiolora.speech.whisper.context import FRAMES_PER_POSITION

_PAST, _STEPS = 2, 2  # of the examples


class WhisperEncoder(nn.Module):
    """Features (N, n_mels, frames) → each decoder layer's keys and values (N, heads, positions, head_dim) of them.

    Args:
        net: a ``WhisperForConditionalGeneration``, adapted or plain.
    """

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.encoder = net.model.encoder
        self.cross = nn.ModuleList([layer.encoder_attn for layer in net.model.decoder.layers])

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Keys and values, layer by layer: key 0, value 0, key 1, …"""
        encoder: Any = self.encoder
        hidden = F.gelu(encoder.conv2(F.gelu(encoder.conv1(features)))).transpose(1, 2)
        hidden = hidden + encoder.embed_positions.weight[: hidden.shape[1]]
        for layer in encoder.layers:
            hidden = hidden + _attention(layer.self_attn, layer.self_attn_layer_norm(hidden))
            hidden = hidden + _fully_connected(layer, hidden)
        hidden = encoder.layer_norm(hidden)
        return tuple(part for attention in self.cross for part in _keys_values(attention, hidden))


class WhisperDecoder(nn.Module):
    """Tokens (N, steps) after those in the cache → logits (N, steps, vocabulary) and the longer cache.

    Args:
        net: a ``WhisperForConditionalGeneration``, adapted or plain.
    """

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.decoder, self.proj_out = net.model.decoder, net.proj_out

    def forward(self, tokens: torch.Tensor, *given: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Logits, then the new cache, layer by layer: key 0, value 0, key 1, …

        Args:
            tokens: int64 (N, steps).
            given: the encoder's outputs (N, heads, positions, head_dim), then the cache (N, heads, past, head_dim).
        """
        decoder: Any = self.decoder
        heard, cache = given[: len(given) // 2], given[len(given) // 2 :]
        past, steps = cache[0].shape[2], tokens.shape[1]
        at = torch.arange(steps, device=tokens.device) + past
        hidden = decoder.embed_tokens(tokens) + decoder.embed_positions.weight[at]
        later = torch.arange(past + steps, device=tokens.device) > at[:, None]
        mask = torch.zeros_like(later, dtype=hidden.dtype).masked_fill(later, torch.finfo(hidden.dtype).min)
        present: list[torch.Tensor] = []
        for i, layer in enumerate(decoder.layers):
            x = layer.self_attn_layer_norm(hidden)
            own = _keys_values(layer.self_attn, x)
            keys, values = (torch.cat([cache[2 * i + j], own[j]], 2) for j in (0, 1))
            present += [keys, values]
            hidden = hidden + _attention(layer.self_attn, x, keys, values, mask)
            x = layer.encoder_attn_layer_norm(hidden)
            hidden = hidden + _attention(layer.encoder_attn, x, heard[2 * i], heard[2 * i + 1])
            hidden = hidden + _fully_connected(layer, hidden)
        return self.proj_out(decoder.layer_norm(hidden)), *present


def whisper_parts(whisper: Any, features: torch.Tensor) -> list[Part]:
    """The two graphs of a Whisper.

    Args:
        whisper: a ``WhisperForConditionalGeneration``, adapted or plain.
        features: log-mel features (N, n_mels, frames) of a clip that is no secret: they are the self-test. A few frames
            will do, and keep it small.

    Example:
        >>> from audiolora.export import export
        >>> export(model, "bundle", parts=whisper_parts(whisper, features))  # doctest: +SKIP
    """
    config, draw = whisper.config, torch.Generator().manual_seed(0)
    heads, size = config.decoder_attention_heads, config.d_model // config.decoder_attention_heads
    n, positions = len(features), (features.shape[2] + 1) // FRAMES_PER_POSITION

    def drawn(length: int) -> list[torch.Tensor]:
        return [torch.randn(n, heads, length, size, generator=draw) for _ in range(2 * config.decoder_layers)]

    heard, cache = drawn(positions), drawn(_PAST)
    tokens = torch.randint(config.vocab_size, (n, _STEPS), generator=draw)
    names = _by_layer(config.decoder_layers, "heard")
    states = dict(
        zip(_by_layer(config.decoder_layers, "past"), _by_layer(config.decoder_layers, "present"), strict=True)
    )
    given = {TOKENS: tokens, **dict(zip(names, heard, strict=True)), **dict(zip(states, cache, strict=True))}
    free = {TOKENS: {0: "batch", 1: "steps"}}
    free |= {name: {0: "batch", 2: "positions"} for name in names} | {name: {0: "batch", 2: "past"} for name in states}
    return [
        Part(
            {FEATURES: features}, {FEATURES: {0: "batch", 2: "frames"}}, ENCODER, WhisperEncoder, outputs=tuple(names)
        ),
        Part(given, free, DECODER, WhisperDecoder, states, ("logits", *states.values())),
    ]


def _by_layer(layers: int, prefix: str) -> list[str]:
    return [f"{prefix}_{kind}_{layer}" for layer in range(layers) for kind in ("key", "value")]


def _keys_values(attention: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return _by_head(attention, attention.k_proj(x)), _by_head(attention, attention.v_proj(x))


def _by_head(attention: Any, x: torch.Tensor) -> torch.Tensor:
    """(N, L, C) → (N, heads, L, C / heads)."""
    return x.view(x.shape[0], x.shape[1], attention.num_heads, attention.head_dim).transpose(1, 2)


def _attention(
    attention: Any,
    x: torch.Tensor,
    keys: torch.Tensor | None = None,
    values: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """transformers' ``WhisperAttention``; without keys and values those of x itself."""
    if keys is None or values is None:
        keys, values = _keys_values(attention, x)
    queries = _by_head(attention, attention.q_proj(x) * attention.scaling)
    weights = queries @ keys.transpose(2, 3)
    weights = (weights if mask is None else weights + mask).softmax(-1)
    return attention.out_proj((weights @ values).transpose(1, 2).flatten(2))


def _fully_connected(layer: Any, hidden: torch.Tensor) -> torch.Tensor:
    return layer.fc2(layer.activation_fn(layer.fc1(layer.final_layer_norm(hidden))))
