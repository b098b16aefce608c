"""The model card of an adapter: what it is, what it was trained on, how well it did."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from audiolora.speech.adapter import AdapterInfo
    from audiolora.speech.metrics import ErrorRates

SOURCES = "## Sources and licences"
"""The heading that the card ends with; a merged model's card takes over what stands below it."""

_CARD = """---
base_model: {info.base_model}
library_name: peft
pipeline_tag: automatic-speech-recognition
tags: [audiolora, lora, whisper]
metrics: [wer, cer]
{language}---

# {title}

A low-rank adapter for {info.base_model}, trained with audiolora. {summary}

| | WER % [95 % interval] | CER % |
|---|---|---|
| zero-shot | {before} |
| adapted | {after} |

{notes}

## Use

    audiolora transcribe recording.wav --adapter PATH

Decode with the context it was trained at (`{info.context}`); `audiolora transcribe` does.

{sources}

{attribution}
"""


def model_card(
    title: str,
    summary: str,
    info: AdapterInfo,
    before: ErrorRates,
    after: ErrorRates,
    *,
    notes: Sequence[str],
    attribution: Sequence[str],
) -> str:
    """The card as Markdown with the hub's header.

    Args:
        title: the run's name, for people.
        summary: one or two sentences: data, channel, parameters.
        info: of the adapter.
        before, after: held-out error rates.
        notes: what a reader must know, a paragraph each.
        attribution: sources and licences, a line each.
    """
    return _CARD.format(
        title=title,
        summary=summary,
        info=info,
        language=f"language: {info.language}\n" if info.language else "language: en\n",
        before=_cells(before),
        after=_cells(after),
        notes="\n\n".join(notes),
        sources=SOURCES,
        attribution="\n".join(f"- {line}" for line in attribution),
    )


def _cells(rates: ErrorRates) -> str:
    return f"{rates.wer.value:.1f} [{rates.wer.low:.1f}, {rates.wer.high:.1f}] | {rates.cer.value:.1f}"
