"""The tokens that a Whisper's text begins with: start, language, task, and whether timestamps follow."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from audiolora.speech.whisper.generation import first_logits

if TYPE_CHECKING:
    from transformers import WhisperForConditionalGeneration

TASKS = ("transcribe", "translate")


def whisper_of(model: torch.nn.Module) -> WhisperForConditionalGeneration:
    """The Whisper inside a model, whatever wraps it: PEFT, DistributedDataParallel.

    Raises:
        TypeError: there is none inside, or more than one.
    """
    from transformers import WhisperForConditionalGeneration

    found = [module for module in model.modules() if isinstance(module, WhisperForConditionalGeneration)]
    if len(found) != 1:
        raise TypeError(
            f"{type(model).__name__} holds {len(found)} WhisperForConditionalGeneration; give a model with one"
        )
    return found[0]


def is_multilingual(model: torch.nn.Module) -> bool:
    """Whether a Whisper knows other languages than English, by its generation config, else its vocabulary."""
    whisper = whisper_of(model)
    by_config = getattr(whisper.generation_config, "is_multilingual", None)
    return whisper.config.vocab_size >= 51865 if by_config is None else bool(by_config)


def language_code(model: torch.nn.Module, language: str | None, task: str = "transcribe") -> str | None:
    """A Whisper's code of a language given by code or English name; None stands for a language to be detected.

    Returns:
        The code; None where it is to be detected, and for an English-only model, which takes none.

    Raises:
        ValueError: a language or a task that this Whisper does not know.

    Example:
        >>> language_code(whisper.model, "Italian")  # doctest: +SKIP
        'it'
    """
    from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

    if task not in TASKS:
        raise ValueError(f"task must be 'transcribe' or 'translate', got {task!r}")
    code = None if language is None else TO_LANGUAGE_CODE.get(language.lower(), language.lower())
    if not is_multilingual(model):
        if code not in (None, "en") or task != "transcribe":
            raise ValueError(
                f"an English-only Whisper can only transcribe English, got language={language!r}, task={task!r}; take "
                "a multilingual one, for example openai/whisper-base"
            )
        return None
    known = known_languages(model)
    if code is not None and code not in known:
        near = difflib.get_close_matches(code, [*known, *TO_LANGUAGE_CODE], n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise ValueError(
            f"language {language!r} is none of the {len(known)} that this Whisper knows{hint}; for a language without "
            "a token of its own, take that of a near one on purpose (training: --language-token)"
        )
    return code


def known_languages(model: torch.nn.Module) -> dict[str, int]:
    """The codes of the languages that a multilingual Whisper has a token for, and the tokens' ids."""
    ids = getattr(whisper_of(model).generation_config, "lang_to_id", None)
    if not ids:
        raise ValueError(
            "the model's generation config has no lang_to_id, so it cannot say which languages it knows; take the "
            "generation_config.json of the OpenAI model that it comes from"
        )
    return {token[2:-2]: index for token, index in ids.items()}


def start_ids(
    whisper: WhisperForConditionalGeneration,
    languages: Sequence[str | None],
    task: str,
    *,
    timestamps: bool = False,
    hidden: torch.Tensor | None = None,
) -> tuple[list[list[int]], list[str | None]]:
    """What each row's text begins with.

    Args:
        whisper: bare.
        languages: each row's code, from `language_code`; None detects it.
        task: "transcribe" or "translate".
        timestamps: whether timestamp tokens are to follow.
        hidden: encoder states (N, positions, d_model), to detect languages from.

    Returns:
        Ids of each row, and its language; None for an English-only model.
    """
    config = whisper.generation_config
    quiet = [] if timestamps else [config.no_timestamps_token_id]
    if not is_multilingual(whisper):
        return [[config.decoder_start_token_id, *quiet] for _ in languages], [None] * len(languages)
    known = known_languages(whisper)
    found = list(languages)
    unknown = [row for row, code in enumerate(found) if code is None]
    if unknown:
        assert hidden is not None
        codes, ids = list(known), torch.tensor(list(known.values()), device=hidden.device)
        for row, best in zip(unknown, first_logits(whisper, hidden[unknown])[:, ids].argmax(-1).tolist(), strict=True):
            found[row] = codes[best]
    task_id = config.task_to_id[task]
    starts = [[config.decoder_start_token_id, known[str(code)], task_id, *quiet] for code in found]
    return starts, found


def prompt_ids(tokenizer: Any, prompt: str | None, most: int) -> list[int]:
    """The ids of a prompt: <|startofprev|> and its words.

    Args:
        tokenizer: the model's.
        prompt: the text; None is no prompt.
        most: ids that there is room for; Whisper keeps half of its decoder's positions, less one, for a prompt.

    Raises:
        ValueError: it is too long, or it holds special tokens.
    """
    if prompt is None:
        return []
    ids = tokenizer(" " + prompt.strip(), add_special_tokens=False).input_ids
    if any(index >= tokenizer.eos_token_id for index in ids):
        raise ValueError(f"prompt holds special tokens of Whisper's: {prompt[:60]!r}; give words alone")
    if len(ids) > most:
        raise ValueError(f"prompt has {len(ids)} tokens, more than the {most} that Whisper reads; shorten it")
    return [tokenizer.convert_tokens_to_ids("<|startofprev|>"), *ids]
