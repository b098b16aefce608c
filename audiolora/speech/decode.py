"""From audio to text: Whisper's log-mel features and batched greedy decoding."""

from __future__ import annotations

import copy
import difflib
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from audiolora.speech.context import FRAMES_PER_S, MAX_FRAMES, ContextMode, ContextPolicy, audio_context

if TYPE_CHECKING:
    from transformers import WhisperForConditionalGeneration, WhisperProcessor

SAMPLE_RATE_HZ = 16_000
HOP_SAMPLES = SAMPLE_RATE_HZ // FRAMES_PER_S  # 160, 10 ms

# Speech makes 3-7 tokens a second in Latin scripts, up to about 20 in scripts that the vocabulary spells by the byte.
TOKENS_PER_S = 24
TOKENS_AT_LEAST = 16
PROMPT_TOKENS = 4  # start, language, task, no timestamps


def log_mel(processor: WhisperProcessor, audio: np.ndarray, n_frames: int = MAX_FRAMES) -> torch.Tensor:
    """Whisper's log-mel spectrogram of a clip, padded with silence to `n_frames`.

    It is the first `n_frames` columns of the 30 s that Whisper's feature extractor makes. The extractor scales by the
    clip's maximum and floors at 8 (80 dB) below it; silence never is the maximum, so the length does not matter.

    Args:
        processor: the model's processor.
        audio: samples (L,), 16 kHz, mono, float, at most `n_frames` * 160 of them.
        n_frames: frames of 10 ms; at most 3000.

    Returns:
        float32 (n_mels, n_frames).

    Raises:
        ValueError: the audio is empty, not one-dimensional, not finite or longer than `n_frames`.

    Example:
        >>> log_mel(processor, np.zeros(16_000, np.float32), 100).shape  # doctest: +SKIP
        torch.Size([80, 100])
    """
    samples = np.asarray(audio, dtype=np.float32)
    _check_samples(samples, "audio")
    if not 0 < n_frames <= MAX_FRAMES:
        raise ValueError(f"n_frames must be between 1 and {MAX_FRAMES}, got {n_frames}")
    if len(samples) > n_frames * HOP_SAMPLES:
        raise ValueError(
            f"audio lasts {len(samples) / SAMPLE_RATE_HZ:.2f} s, more than the {n_frames / FRAMES_PER_S:.2f} s of "
            "context; give more frames or cut the clip"
        )
    # One frame more than needed: the last frame's window reaches past its hop; at the end the extractor would mirror.
    computed = min(n_frames + 1, MAX_FRAMES)
    features = processor.feature_extractor(
        samples, sampling_rate=SAMPLE_RATE_HZ, max_length=computed * HOP_SAMPLES, return_tensors="pt"
    ).input_features[0]
    return features[:, :n_frames].contiguous()


def _check_samples(samples: np.ndarray, name: str) -> None:
    if samples.ndim != 1 or samples.size == 0:
        raise ValueError(f"{name} must be mono with at least one sample, shape (L,); got shape {samples.shape}")
    if not np.isfinite(samples).all():
        raise ValueError(f"{name} holds NaN or infinite samples; repair or drop the clip")


def transcribe(
    model: torch.nn.Module,
    processor: WhisperProcessor,
    audios: Sequence[np.ndarray],
    *,
    context: ContextMode | ContextPolicy = "auto",
    language: str | None = None,
    task: Literal["transcribe", "translate"] = "transcribe",
    batch_size: int = 8,
    progress: bool = True,
    max_new_tokens: int | None = None,
    names: Sequence[str] | None = None,
) -> list[str]:
    """Transcribe clips with greedy decoding.

    Clips of one context are batched together, so a clip's text does not depend on which others stand beside it. Each
    batch is encoded once; there is no second try at a higher temperature.

    Args:
        model: a Whisper, bare or wrapped (PEFT, DistributedDataParallel); its train/eval modes are left as they were.
        processor: the model's processor.
        audios: clips (L,), 16 kHz, mono, float, at most 30 s each.
        context: what the encoder sees: each clip's own length ("auto", and "mix" too) or 30 s ("full"). Take the one
            that the model or adapter was trained with: a plain Whisper needs "full".
        language: code or English name of the language spoken ("it", "italian"); None lets a multilingual model detect
            it for each clip. English-only models know "en" alone.
        task: "transcribe", or "translate" into English (multilingual models).
        batch_size: clips a batch.
        progress: show a progress bar.
        max_new_tokens: the longest text, tokens. None allows 24 a second of audio and 16 more, several times what
            speech takes, so that a looping model stops early. Whisper itself ends at 448 with the prompt.
        names: what error messages call the clips, for example their files.

    Returns:
        The texts in the order of `audios`.

    Raises:
        ValueError: a clip is over 30 s, empty or not finite; an unknown language or task; a number out of range.
        TypeError: `model` holds no Whisper.

    Example:
        >>> transcribe(whisper.model, whisper.processor, [samples], context="full")  # doctest: +SKIP
        ['You entered the code correctly.']
    """
    policy = context if isinstance(context, ContextPolicy) else ContextPolicy(context)
    whisper = _whisper(model)
    prompt = _language_and_task(whisper, language, task)
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    limit = _token_limit(whisper, max_new_tokens)
    clips = _check_clips(audios, names)
    durations_s = [len(clip) / SAMPLE_RATE_HZ for clip in clips]
    budgets = [
        limit if max_new_tokens else min(limit, TOKENS_AT_LEAST + math.ceil(TOKENS_PER_S * duration_s))
        for duration_s in durations_s
    ]
    texts = [""] * len(clips)
    # no_grad and not inference_mode: a tensor that an adapter layer caches here may be met by a later backward
    with torch.no_grad(), _evaluating(model), _progress_bar(len(clips), progress) as advance:
        for n_frames, batch in _batches(policy, durations_s, batch_size):
            features = torch.stack([log_mel(processor, clips[index], n_frames) for index in batch])
            with audio_context(whisper, n_frames):
                ids = _generate(whisper, features, [budgets[index] for index in batch], prompt)
            for index, text in zip(batch, processor.tokenizer.batch_decode(ids, skip_special_tokens=True), strict=True):
                texts[index] = text.strip()
            advance(len(batch))
    return texts


def _batches(policy: ContextPolicy, durations_s: Sequence[float], batch_size: int) -> Iterator[tuple[int, list[int]]]:
    """(context in frames, indices of clips), longest clips first: what does not fit in memory fails at once."""
    order = sorted(range(len(durations_s)), key=lambda index: -durations_s[index])
    by_context: dict[int, list[int]] = {}
    for index in order:
        by_context.setdefault(policy.n_frames([durations_s[index]]), []).append(index)
    for n_frames, indices in by_context.items():
        for start in range(0, len(indices), batch_size):
            yield n_frames, indices[start : start + batch_size]


def _generate(
    whisper: WhisperForConditionalGeneration, features: torch.Tensor, budgets: Sequence[int], prompt: dict[str, str]
) -> torch.Tensor:
    """Token ids (N, n) of features (N, n_mels, n_frames); row i ends after budgets[i] new tokens at the latest."""
    from transformers import StoppingCriteriaList
    from transformers.modeling_outputs import BaseModelOutput

    encoder = whisper.get_encoder()
    hidden = encoder(features.to(whisper.device, encoder.conv1.weight.dtype)).last_hidden_state
    config = copy.deepcopy(whisper.generation_config)
    config.update(max_new_tokens=max(budgets), do_sample=False, num_beams=1, return_timestamps=False)
    with _without_warnings("Passing `generation_config` together with", "Both `max_new_tokens`"):
        return whisper.generate(
            # encoded here, once: generate() would encode again to detect the language
            encoder_outputs=BaseModelOutput(last_hidden_state=hidden),
            attention_mask=torch.ones(len(features), features.shape[-1], dtype=torch.long, device=hidden.device),
            generation_config=config,
            stopping_criteria=StoppingCriteriaList([_Budgets(budgets)]),
            use_cache=True,
            **prompt,
        )


@contextmanager
def _without_warnings(*starts: str) -> Iterator[None]:
    """Drop warnings of transformers about what its own Whisper `generate` passes on."""

    def keep(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(starts)

    logger = logging.getLogger("transformers.generation.utils")
    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)


class _Budgets:
    """Stopping criterion of `generate`: row i is done after budgets[i] new tokens."""

    def __init__(self, budgets: Sequence[int]) -> None:
        self.budgets = torch.tensor(budgets)
        self.prompt_length: int | None = None

    def __call__(self, input_ids: torch.Tensor, scores: object, **kwargs: object) -> torch.Tensor:
        if self.prompt_length is None:  # first asked after the first new token
            self.prompt_length = input_ids.shape[1] - 1
        return (self.budgets <= input_ids.shape[1] - self.prompt_length).to(input_ids.device)


def _check_clips(audios: Sequence[np.ndarray], names: Sequence[str] | None) -> list[np.ndarray]:
    if names is not None and len(names) != len(audios):
        raise ValueError(f"names must have one entry a clip: {len(names)} names, {len(audios)} clips")
    clips = []
    for index, audio in enumerate(audios):
        name = f"clip {index}" if names is None else f"clip {index} ({names[index]})"
        samples = np.asarray(audio, dtype=np.float32)
        _check_samples(samples, name)
        if len(samples) > MAX_FRAMES * HOP_SAMPLES:
            raise ValueError(
                f"{name} lasts {len(samples) / SAMPLE_RATE_HZ:.2f} s; Whisper hears at most 30 s at once: cut it into "
                "shorter clips"
            )
        clips.append(samples)
    return clips


def _whisper(model: torch.nn.Module) -> WhisperForConditionalGeneration:
    from transformers import WhisperForConditionalGeneration

    found = [module for module in model.modules() if isinstance(module, WhisperForConditionalGeneration)]
    if len(found) != 1:
        raise TypeError(
            f"{type(model).__name__} holds {len(found)} WhisperForConditionalGeneration; give a model with one"
        )
    return found[0]


def is_multilingual(model: torch.nn.Module) -> bool:
    """Whether a Whisper knows other languages than English, by its generation config, else its vocabulary."""
    whisper = _whisper(model)
    by_config = getattr(whisper.generation_config, "is_multilingual", None)
    return whisper.config.vocab_size >= 51865 if by_config is None else bool(by_config)


def _language_and_task(whisper: WhisperForConditionalGeneration, language: str | None, task: str) -> dict[str, str]:
    """What to pass to `generate`: nothing for an English-only model."""
    from transformers.models.whisper.tokenization_whisper import LANGUAGES, TO_LANGUAGE_CODE

    if task not in ("transcribe", "translate"):
        raise ValueError(f"task must be 'transcribe' or 'translate', got {task!r}")
    code = None if language is None else TO_LANGUAGE_CODE.get(language.lower(), language.lower())
    if not is_multilingual(whisper):
        if code not in (None, "en") or task != "transcribe":
            raise ValueError(
                f"an English-only Whisper can only transcribe English, got language={language!r}, task={task!r}; take "
                "a multilingual one, for example openai/whisper-base"
            )
        return {}
    known = {token[2:-2] for token in getattr(whisper.generation_config, "lang_to_id", {})} or set(LANGUAGES)
    if code is None:
        return {"task": task}
    if code not in known:
        near = difflib.get_close_matches(code, [*known, *TO_LANGUAGE_CODE], n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise ValueError(f"language {language!r} is none of the {len(known)} that this Whisper knows{hint}")
    return {"language": code, "task": task}


def _token_limit(whisper: WhisperForConditionalGeneration, max_new_tokens: int | None) -> int:
    room = whisper.config.max_target_positions - PROMPT_TOKENS
    if max_new_tokens is not None and not 0 < max_new_tokens <= room:
        raise ValueError(f"max_new_tokens must be between 1 and {room}, got {max_new_tokens}")
    return room if max_new_tokens is None else max_new_tokens


@contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Eval mode for a while; every module gets its own mode back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def _progress_bar(total: int, show: bool) -> Iterator[Callable[[int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("transcribing"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # on stderr: on stdout it would stand among the texts
    with Progress(*columns, console=Console(stderr=True), disable=not show or total == 0) as bar:
        row = bar.add_task("transcribing", total=total)
        yield lambda n: bar.advance(row, n)
