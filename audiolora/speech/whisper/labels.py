"""What a Whisper learns to write for a clip: its language's tokens, timestamps kept or dropped, the text, the end."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from audiolora.speech.data.rows import DataError
from audiolora.speech.whisper.decoding import Timestamps

if TYPE_CHECKING:
    import torch

    from audiolora.speech.data.utterance import Utterance

STEP_S = 0.02  # of Whisper's timestamps
_STAMP = re.compile(r"<\|(\d+\.\d\d)\|>")
_LISTED = 20


def label_ids(tokenizer: Any, start_token: int, item: dict[str, Any]) -> torch.Tensor:
    """Token ids (n_tokens,) of a clip, without the start token, which the model puts before them by itself.

    The tokenizer's own prefix says language, task and whether timestamps follow (see `set_language`); a clip's own
    language takes the place of the prefix's. Where timestamps follow, a text without any is one stretch that lasts the
    whole clip, and those of a clip that was made longer or shorter (by a channel, by speed) move with it.

    Args:
        tokenizer: the model's.
        start_token: the decoder's first token.
        item: of `Clips`: "text", and "audio" (n_samples,) at 16 kHz; "language" and "duration_s" where they are known.
    """
    import torch

    from audiolora.speech.data.audio import SAMPLE_RATE_HZ

    text, language = item["text"], item.get("language")
    if tokenizer.predict_timestamps:
        now_s = len(item["audio"]) / SAMPLE_RATE_HZ
        text = with_stamps(text, now_s, stretch=now_s / item.get("duration_s", now_s))
    else:
        text = without_stamps(text)
    ids = tokenizer(text).input_ids
    if language is not None and tokenizer.language is not None:
        token = tokenizer.convert_tokens_to_ids(f"<|{language}|>")
        ids[1 if ids[0] == start_token else 0] = token
    return torch.tensor(ids[1:] if ids[0] == start_token else ids)


def without_stamps(text: str) -> str:
    """The text alone.

    >>> without_stamps("<|0.00|> Hello.<|1.20|><|1.40|> Bye.<|2.00|>")
    'Hello. Bye.'
    """
    return " ".join(_STAMP.sub(" ", text).split()) if _STAMP.search(text) else text


def with_stamps(text: str, duration_s: float, *, stretch: float = 1.0) -> str:
    """The text between timestamps, as Whisper writes them.

    Args:
        text: with timestamp tokens, or without any.
        duration_s: of the clip as it is heard.
        stretch: how many times as long it lasts as when its timestamps were set.

    >>> with_stamps("Hello.", 1.234)
    '<|0.00|> Hello.<|1.22|>'
    >>> with_stamps("<|0.10|> Hello.<|1.00|>", 2.0, stretch=2.0)
    '<|0.20|> Hello.<|2.00|>'
    """
    last = int(duration_s / STEP_S + 1e-6)
    if not _STAMP.search(text):
        return f"{_stamp(0)} {text.strip()}{_stamp(last)}"
    return _STAMP.sub(lambda found: _stamp(min(round(float(found[1]) * stretch / STEP_S), last)), text)


def _stamp(steps: int) -> str:
    return f"<|{steps * STEP_S:.2f}|>"


def check_stamps(utterances: Sequence[Utterance], timestamps: Timestamps) -> list[Utterance]:
    """The utterances as they are trained on: stamps dropped, or kept where they are what Whisper writes.

    Raises:
        DataError: with "keep", a text whose timestamps do not open and close each stretch in order, or go past 30 s,
            or no text with any; every such row is named.
    """
    if timestamps == "drop":
        return [replace(one, text=without_stamps(one.text)) if _STAMP.search(one.text) else one for one in utterances]
    faults = [f"{one.where}: {fault}" for one in utterances if (fault := _fault(one.text))]
    if not faults and not any(_STAMP.search(one.text) for one in utterances):
        faults = ["no text has timestamps; write them into the texts, such as '<|0.00|> Hello.<|1.20|>'"]
    if faults:
        more = [f"… and {len(faults) - _LISTED} more"] if len(faults) > _LISTED else []
        headline = (
            f"timestamps of {len(faults)} rows cannot be kept; mend them, or leave them out with --timestamps drop"
        )
        raise DataError("\n  ".join([headline + ":", *faults[:_LISTED], *more]))
    return list(utterances)


def _fault(text: str) -> str | None:
    if not _STAMP.search(text):
        return None
    pieces = _STAMP.split(text.strip())  # text, time, text, time, … text
    between, times = pieces[::2], [float(time) for time in pieces[1::2]]
    outside, inside = between[::2], between[1::2]
    if len(times) % 2 or any(map(str.strip, outside)) or not all(map(str.strip, inside)):
        return f"each stretch needs a timestamp before and after it, got {text[:80]!r}"
    if any(later < earlier for earlier, later in pairwise(times)) or times[-1] > 30:
        return f"timestamps must rise to 30.00 at most, got {text[:80]!r}"
    if any(abs(time / STEP_S - round(time / STEP_S)) > 1e-6 for time in times):
        return f"timestamps go by steps of 0.02 s, got {text[:80]!r}"
    return None
