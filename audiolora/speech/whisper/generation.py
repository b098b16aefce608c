"""One batch of windows from log-mel frames to token ids: transformers' greedy and beam search, and Whisper's fall-back.

transformers' own Whisper ``generate`` encodes twice to detect a language, mixes up rows when only some of a batch fall
back, and takes one language and one prompt a batch, so this drives the search below it. Whatever is drawn comes from a
generator of its own for each row: a row's text does not depend on the others in its batch.
"""

from __future__ import annotations

import copy
import logging
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import WhisperForConditionalGeneration

    from audiolora.speech.whisper.decoding import WhisperDecoding


@dataclass(frozen=True)
class Decoded:
    """What a window was decoded to.

    Args:
        tokens: new token ids, timestamps among them where they were asked for, without prompt and end.
        temperature: it was decoded at.
        log_probability: mean over its tokens and the end, natural logarithm; None where no fall-back asked for it.
        compression_ratio: of its text.
        no_speech: probability that there is no speech, in [0, 1]; None where no fall-back asked for it.
        silent: the fall-back took it for silence, so it has no text.
    """

    tokens: tuple[int, ...]
    temperature: float = 0.0
    log_probability: float | None = None
    compression_ratio: float = 0.0
    no_speech: float | None = None
    silent: bool = False


def encode(whisper: WhisperForConditionalGeneration, features: torch.Tensor) -> torch.Tensor:
    """Encoder states (N, n_frames / 2, d_model) of log-mel frames (N, n_mels, n_frames)."""
    encoder = whisper.get_encoder()
    return encoder(features.to(whisper.device, encoder.conv1.weight.dtype)).last_hidden_state


def first_logits(
    whisper: WhisperForConditionalGeneration, hidden: torch.Tensor, before: Sequence[int] = ()
) -> torch.Tensor:
    """Logits (N, vocabulary) after the start token: where a Whisper names the language, and no speech.

    Args:
        hidden: encoder states (N, positions, d_model).
        before: ids that stand before the start token: a prompt.
    """
    from transformers.modeling_outputs import BaseModelOutput

    ids = torch.tensor([[*before, whisper.generation_config.decoder_start_token_id]], device=hidden.device)
    heard = BaseModelOutput(last_hidden_state=hidden)
    return whisper(encoder_outputs=heard, decoder_input_ids=ids.expand(len(hidden), -1), use_cache=False).logits[:, -1]


def generate(
    whisper: WhisperForConditionalGeneration,
    tokenizer: Any,
    hidden: torch.Tensor,
    prompts: Sequence[Sequence[int]],
    budgets: Sequence[int],
    seeds: Sequence[int],
    decoding: WhisperDecoding,
    *,
    timestamps: bool = False,
) -> list[Decoded]:
    """Decode a batch.

    Args:
        whisper: bare, in eval mode.
        tokenizer: its tokenizer, for the compression ratio.
        hidden: encoder states (N, positions, d_model).
        prompts: ids that each row's text follows, of one length: prompt, start, language, task.
        budgets: each row's most new tokens.
        seeds: of each row's draws, in [0, 2**32).
        decoding: see `WhisperDecoding`.
        timestamps: whether Whisper's rules for timestamp tokens hold; the prompts then end without <|notimestamps|>.

    Returns:
        One for each row.
    """
    no_speech = _no_speech(whisper, hidden, prompts) if decoding.fallback else [None] * len(hidden)
    found: dict[int, Decoded] = {}
    rows = list(range(len(hidden)))
    for temperature in decoding.attempts:
        attempt = _search(
            whisper,
            hidden[rows],
            [prompts[row] for row in rows],
            [budgets[row] for row in rows],
            [_draws(decoding, seeds[row], temperature) for row in rows],
            decoding,
            temperature,
            timestamps,
        )
        for row, (tokens, log_probability) in zip(rows, attempt, strict=True):
            ratio = compression_ratio(tokenizer.decode(tokens, skip_special_tokens=True))
            found[row] = Decoded(tokens, temperature, log_probability, ratio, no_speech[row])
        if not decoding.fallback:
            break
        found.update({row: _without_text(found[row], decoding) for row in rows})
        rows = [row for row in rows if not found[row].silent and _fails(found[row], decoding)]
        if not rows:
            break
    return [found[row] for row in range(len(hidden))]


def compression_ratio(text: str) -> float:
    """How many times zlib shrinks a text's UTF-8 bytes: a looping text shrinks much.

    >>> compression_ratio("no no no no no no no no no no ") > 2.4 > compression_ratio("Please hold the line.")
    True
    """
    data = text.strip().encode("utf-8")
    return len(data) / len(zlib.compress(data))


def _improbable(decoded: Decoded, decoding: WhisperDecoding) -> bool:
    assert decoded.log_probability is not None
    return decoded.log_probability < decoding.log_probability


def _fails(decoded: Decoded, decoding: WhisperDecoding) -> bool:
    return decoded.compression_ratio > decoding.compression_ratio or _improbable(decoded, decoding)


def _without_text(decoded: Decoded, decoding: WhisperDecoding) -> Decoded:
    """The same, without a text where it is improbable and the audio is probably no speech."""
    assert decoded.no_speech is not None
    if not (decoded.no_speech > decoding.no_speech and _improbable(decoded, decoding)):
        return decoded
    return Decoded((), decoded.temperature, decoded.log_probability, 0.0, decoded.no_speech, silent=True)


def _no_speech(
    whisper: WhisperForConditionalGeneration, hidden: torch.Tensor, prompts: Sequence[Sequence[int]]
) -> list[float | None]:
    start, token = (
        whisper.generation_config.decoder_start_token_id,
        whisper.generation_config.no_timestamps_token_id - 1,
    )
    before = prompts[0][: list(prompts[0]).index(start)]
    return first_logits(whisper, hidden, before).float().softmax(-1)[:, token].tolist()


def _draws(decoding: WhisperDecoding, seed: int, temperature: float) -> torch.Generator:
    mixed = zlib.crc32(f"{decoding.seed} {seed} {temperature:.6f}".encode())
    return torch.Generator().manual_seed(mixed)


def _search(
    whisper: WhisperForConditionalGeneration,
    hidden: torch.Tensor,
    prompts: Sequence[Sequence[int]],
    budgets: Sequence[int],
    generators: Sequence[torch.Generator],
    decoding: WhisperDecoding,
    temperature: float,
    timestamps: bool,
) -> list[tuple[tuple[int, ...], float | None]]:
    """(new ids, their mean log-probability) of each row, at one temperature."""
    from transformers import GenerationMixin
    from transformers.modeling_outputs import BaseModelOutput

    ids = torch.tensor([list(prompt) for prompt in prompts], device=hidden.device)
    begin = ids.shape[1]
    beams = decoding.beams if temperature == 0 else 1
    recorder = _Recorder() if decoding.fallback and beams == 1 else None
    config = copy.deepcopy(whisper.generation_config)
    config.update(
        max_new_tokens=max(budgets),
        do_sample=False,
        num_beams=beams,
        length_penalty=1.0,
        return_dict_in_generate=True,
        output_scores=beams > 1 and decoding.fallback,
        forced_decoder_ids=None,
    )
    with _without_warnings("Passing `generation_config` together with", "Both `max_new_tokens`"):
        output = GenerationMixin.generate(
            whisper,
            encoder_outputs=BaseModelOutput(last_hidden_state=hidden),
            attention_mask=torch.ones(hidden.shape[:2], dtype=torch.long, device=hidden.device),
            decoder_input_ids=ids,
            generation_config=config,
            logits_processor=_processors(whisper, decoding, begin, temperature, generators, recorder, timestamps),
            stopping_criteria=[_Budgets(budgets, begin), *([recorder] if recorder else [])],
            use_cache=True,
        )
    end = whisper.generation_config.eos_token_id
    new = [_until(row, end) for row in output.sequences[:, begin:].tolist()]
    if recorder is not None:
        return [(tokens, recorder.mean(row, len(tokens), budgets[row])) for row, tokens in enumerate(new)]
    if decoding.fallback:
        return list(zip(new, output.sequences_scores.tolist(), strict=True))
    return [(tokens, None) for tokens in new]


@contextmanager
def _without_warnings(*starts: str) -> Iterator[None]:
    """Drop these warnings of transformers."""

    def keep(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(starts)

    logger = logging.getLogger("transformers.generation.utils")
    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)


def _until(ids: list[int], end: int) -> tuple[int, ...]:
    return tuple(ids[: ids.index(end)] if end in ids else ids)


def _processors(
    whisper: WhisperForConditionalGeneration,
    decoding: WhisperDecoding,
    begin: int,
    temperature: float,
    generators: Sequence[torch.Generator],
    recorder: _Recorder | None,
    timestamps: bool,
) -> list[Any]:
    """What changes the scores after the suppressed tokens are out, in openai-whisper's order."""
    from transformers.generation.logits_process import (
        NoRepeatNGramLogitsProcessor,
        RepetitionPenaltyLogitsProcessor,
        WhisperTimeStampLogitsProcessor,
    )

    end = whisper.generation_config.eos_token_id
    processors: list[Any] = []
    if decoding.repetition_penalty != 1:
        penalty = RepetitionPenaltyLogitsProcessor(decoding.repetition_penalty)
        processors.append(_OfTheText(penalty, begin, end))
    if decoding.no_repeat_ngram:
        processors.append(_OfTheText(NoRepeatNGramLogitsProcessor(decoding.no_repeat_ngram), begin, end))
    if timestamps:
        processors.append(WhisperTimeStampLogitsProcessor(whisper.generation_config, begin_index=begin))
    if recorder is not None:
        processors.append(recorder.see)
    if temperature > 0:
        processors.append(_Draw(temperature, generators))
    return processors


class _OfTheText:
    """A processor that sees the new tokens alone, not the prompt, and leaves end and timestamps as they were."""

    def __init__(self, inner: Any, begin: int, end: int) -> None:
        self.inner, self.begin, self.end = inner, begin, end

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if input_ids.shape[1] == self.begin:
            return scores
        changed = self.inner(input_ids[:, self.begin :], scores.clone())
        changed[:, self.end :] = scores[:, self.end :]  # special tokens stand behind the vocabulary
        return changed


class _Draw:
    """Draws by the Gumbel-max trick: the greatest of scores / temperature + Gumbel noise, a generator for each row."""

    def __init__(self, temperature: float, generators: Sequence[torch.Generator]) -> None:
        self.temperature, self.generators = temperature, generators

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        exponential = [torch.empty(scores.shape[1]).exponential_(generator=one) for one in self.generators]
        return scores / self.temperature - torch.stack(exponential).log().to(scores)


class _Recorder:
    """Sums the log-probabilities of greedily chosen or drawn tokens without keeping the scores of every step.

    It is asked twice a step: `see` is the last processor before a draw, the call itself a stopping criterion, which
    meets the token just chosen.
    """

    def __init__(self) -> None:
        self.chosen: list[torch.Tensor] = []

    def see(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.log_probabilities = scores.float().log_softmax(-1)
        return scores

    def __call__(self, input_ids: torch.Tensor, scores: object, **kwargs: object) -> torch.Tensor:
        self.chosen.append(self.log_probabilities.gather(1, input_ids[:, -1:])[:, 0].cpu())
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)

    def mean(self, row: int, count: int, budget: int) -> float:
        """Over a row's `count` tokens and one more, as openai-whisper has it: the end, unless the budget came first."""
        values = [step[row].item() for step in self.chosen[: min(count + 1, budget)]]
        return sum(values) / (count + 1)


class _Budgets:
    """Stopping criterion: row i is done after budgets[i] new tokens; a beam search asks of several texts a row."""

    def __init__(self, budgets: Sequence[int], prompt_length: int) -> None:
        self.budgets, self.prompt_length = torch.tensor(budgets), prompt_length

    def __call__(self, input_ids: torch.Tensor, scores: object, **kwargs: object) -> torch.Tensor:
        done = self.budgets <= input_ids.shape[1] - self.prompt_length
        return done.repeat_interleave(len(input_ids) // len(done)).to(input_ids.device)
