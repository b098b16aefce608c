"""When each word is said, from the decoder's cross-attention.

As openai-whisper's ``find_alignment`` does it: some heads of the cross-attention follow the speech; their weights,
normalised over the tokens and smoothed over time, are averaged, and dynamic time warping finds the path through them
that goes forward in both. Paper: Radford et al. (arXiv 2212.04356) do not describe it; the heads are OpenAI's choice.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from audiolora.speech.texts.transcription import Word

if TYPE_CHECKING:
    from transformers import WhisperForConditionalGeneration

POSITION_S = 0.02  # of an encoder position
MEDIAN_WIDTH = 7  # positions that the weights are smoothed over

logger = logging.getLogger(__name__)


def word_times(
    whisper: WhisperForConditionalGeneration,
    tokenizer: Any,
    hidden: torch.Tensor,
    start: Sequence[int],
    stretches: Sequence[Sequence[int]],
    duration_s: float,
    language: str | None,
) -> list[list[Word]]:
    """The words of one piece and when they are said.

    Args:
        whisper: bare, in eval mode.
        tokenizer: its tokenizer.
        hidden: the piece's encoder states (positions, d_model).
        start: ids that the text follows: start, language, task, <|notimestamps|>.
        stretches: the ids of each stretch of the text, without timestamps and end; they are timed together.
        duration_s: of the piece; what the encoder sees after it is silence, to which no word belongs.
        language: Whisper's code; some languages are written without spaces.

    Returns:
        Each stretch's words in order, with times from the piece's begin.
    """
    tokens = [token for stretch in stretches for token in stretch]
    if not tokens:
        return [[] for _ in stretches]
    weights, probabilities = _attention(whisper, hidden, start, tokens)
    positions = max(1, min(weights.shape[-1], round(duration_s / POSITION_S)))
    # the row of each token is the position before it, where it is written; the last one writes the end
    edges = token_times(weights[..., :positions], len(start) - 1, len(start) + len(tokens)).tolist()
    found, first = [], 0
    for stretch in stretches:
        last = first + len(stretch)
        found.append(_words(tokenizer, stretch, edges[first : last + 1], probabilities[first:last].tolist(), language))
        first = last
    return found


def token_times(weights: torch.Tensor, first: int = 0, last: int | None = None) -> np.ndarray:
    """When each token begins.

    Args:
        weights: cross-attention (heads, rows, positions), at least 0.
        first, last: the rows that write the tokens; all are normalised over, as openai-whisper does.

    Returns:
        Seconds (last - first,), never falling.

    Example:
        >>> token_times(torch.eye(3).repeat_interleave(50, dim=1)[None]).round(1)
        array([0., 1., 2.])
    """
    from scipy.ndimage import median_filter
    from transformers.models.whisper.generation_whisper import _dynamic_time_warping

    found = weights.detach().cpu().double().numpy()
    found /= np.maximum(found.sum(-1, keepdims=True), 1e-12)  # as if the softmax had seen these positions alone
    deviation = found.std(axis=-2, keepdims=True)
    found = (found - found.mean(axis=-2, keepdims=True)) / np.maximum(deviation, 1e-12)
    if found.shape[-1] > MEDIAN_WIDTH // 2:
        found = median_filter(found, size=(1, 1, MEDIAN_WIDTH), mode="mirror")
    token_of, position_of = _dynamic_time_warping(-found.mean(axis=0)[first:last])
    return np.maximum(position_of[np.diff(token_of, prepend=-1) > 0], 0) * POSITION_S


def alignment_heads(whisper: WhisperForConditionalGeneration) -> list[tuple[int, int]]:
    """(layer, head) of the cross-attention that follows time: the generation config's, else openai-whisper's default.

    The default is every head of the upper half of the decoder's layers; a warning tells that it was taken.
    """
    known = getattr(whisper.generation_config, "alignment_heads", None)
    if known:
        return [(layer, head) for layer, head in known]
    logger.warning(
        "the model's generation config names no alignment_heads; word times come from every head of the upper half of "
        "its decoder, which is less exact: give it the alignment_heads of the OpenAI model that it comes from"
    )
    layers, heads = whisper.config.decoder_layers, whisper.config.decoder_attention_heads
    return [(layer, head) for layer in range(layers // 2, layers) for head in range(heads)]


def _attention(
    whisper: WhisperForConditionalGeneration, hidden: torch.Tensor, start: Sequence[int], tokens: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-attention (heads, rows, positions), and each token's probability (len(tokens),).

    A row for each id of start, text and end; a text that fills the decoder leaves no room for the end, which nothing is
    timed by.
    """
    from transformers.modeling_outputs import BaseModelOutput

    end = whisper.generation_config.eos_token_id
    ids = torch.tensor([[*start, *tokens, end][: whisper.config.max_target_positions]], device=hidden.device)
    with _eager_attention(whisper):
        output = whisper(
            encoder_outputs=BaseModelOutput(last_hidden_state=hidden[None]),
            decoder_input_ids=ids,
            output_attentions=True,
            use_cache=False,
        )
    weights = torch.stack([output.cross_attentions[layer][0, head] for layer, head in alignment_heads(whisper)])
    first, last = len(start), len(start) + len(tokens)
    chances = output.logits[0, first - 1 : last - 1, :end].float().softmax(-1)  # of words alone
    return weights, chances.gather(1, ids[0, first:last, None])[:, 0]


@contextmanager
def _eager_attention(whisper: WhisperForConditionalGeneration) -> Iterator[None]:
    """The one implementation of attention that tells its weights."""
    before = whisper.config._attn_implementation
    whisper.config._attn_implementation = "eager"
    try:
        yield
    finally:
        whisper.config._attn_implementation = before


def _words(
    tokenizer: Any, tokens: Sequence[int], edges: Sequence[float], chances: Sequence[float], language: str | None
) -> list[Word]:
    from transformers.models.whisper.tokenization_whisper import LANGUAGES, _combine_tokens_into_words

    texts, _, indices = _combine_tokens_into_words(tokenizer, list(tokens), LANGUAGES.get(language or "en", "english"))
    words = []
    for text, own in zip(texts, indices, strict=True):
        if text.strip():
            chance = float(np.exp(np.mean(np.log(np.maximum([chances[index] for index in own], 1e-12)))))
            words.append(Word(text.strip(), round(edges[own[0]], 2), round(edges[own[-1] + 1], 2), chance))
    return words
