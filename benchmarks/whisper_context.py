"""What short audio context costs in accuracy: a Whisper adapter trained at the clips' own length, and at 30 s.

    python benchmarks/whisper_context.py               # about an hour and a half on one core, most of it at 30 s

Whisper tiny.en on 240 telephone prompts under 5 s through a voice scrambler (simulated), five epochs, three seeds, each
adapter decoded at the context it was trained at. Results go to benchmarks/results/whisper_context.jsonl, a line a run,
and a run that has its line is not trained again. At the end the table of docs/speech.md is printed: rates of the seeds
together, and the difference from 30 s by the paired bootstrap over sentences.
"""

import json
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from cyclopts import run

import audiolora
from audiolora.bootstrap import bootstrap_ratio
from audiolora.speech.data.audio import duration_s
from audiolora.speech.data.manifests import read_utterances
from audiolora.speech.data.split import split_by_text
from audiolora.speech.sound.channels import parse_channel
from audiolora.speech.texts.metrics import utterance_errors
from audiolora.speech.texts.significance import difference
from audiolora.speech.training.clips import Clips
from audiolora.speech.training.settings import TrainingSettings
from audiolora.speech.whisper.context import ContextMode
from audiolora.speech.whisper.decode import transcribe
from audiolora.speech.whisper.training import train_whisper
from audiolora.speech.whisper.weights import load_whisper

RESULTS = Path(__file__).parent / "results" / "whisper_context.jsonl"
MODEL, CHANNEL, LONGEST_S, TRAIN_CLIPS = "openai/whisper-tiny.en", "invert", 5.0, 240
RANKS = {"conv": 34, "attention": 4}
SEEDS = (0, 1, 2)
CALLED: dict[ContextMode, str] = {"full": "30 s", "auto": "the clips' own length"}


def main(*, threads: int = 1) -> None:
    """Run what is not in the results yet, and print the table.

    Args:
        threads: of torch.
    """
    torch.set_num_threads(threads)
    for seed in SEEDS:
        for context in CALLED:
            if not _found(context, seed):
                _append(one_run(context, seed))
    print(table())


def one_run(context: ContextMode, seed: int) -> dict[str, Any]:
    """Train one adapter; wrong words and words of each test sentence."""
    spoken = [u for u in read_utterances("prompts-en") if duration_s(u.audio) <= LONGEST_S]
    split, channel = split_by_text(spoken, test=100, dev=40, seed=0), parse_channel(CHANNEL)
    train, dev, test = (Clips(part, channel) for part in (split.train[:TRAIN_CLIPS], split.dev, split.test))
    whisper = load_whisper(MODEL)
    torch.manual_seed(seed)
    model = audiolora.adapt(whisper.model, r=RANKS, targets=list(RANKS))
    settings = TrainingSettings(epochs=5, context=context, seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        train_whisper(model, whisper.processor, train, dev, settings, Path(folder))
    texts = transcribe(model, whisper.processor, test.audios(), context=context, progress=False)
    said = [utterance.text for utterance in split.test]
    found = utterance_errors(said, texts, normalize=whisper.processor.tokenizer.normalize)
    return {
        "context": context,
        "seed": seed,
        "wer": 100 * sum(each.errors for each in found) / sum(each.words for each in found),
        "errors": [each.errors for each in found],
        "words": [each.words for each in found],
        "versions": {name: version(name) for name in ("audiolora", "torch", "peft", "transformers")},
    }


def table() -> str:
    """The results as Markdown."""
    lines = [
        "| trained and decoded at | WER %, three seeds [95 % interval] | each seed | points more than at 30 s |",
        "|---|---|---|---|",
    ]
    long, _ = _summed("full")
    for context, called in CALLED.items():
        errors, words = _summed(context)
        rate, more = bootstrap_ratio([100.0 * e for e in errors], words), difference(long, errors, words)
        each = ", ".join(f"{_found(context, seed)[0]['wer']:.1f}" for seed in SEEDS)
        against = "–" if context == "full" else f"{more.points:+.1f} [{more.low:+.1f}, {more.high:+.1f}]"
        lines.append(f"| {called} | {rate.value:.1f} [{rate.low:.1f}, {rate.high:.1f}] | {each} | {against} |")
    return "\n".join(lines)


def _summed(context: ContextMode) -> tuple[list[int], list[int]]:
    """Errors and words of each sentence, over the seeds."""
    rows = [row for seed in SEEDS for row in _found(context, seed)]
    errors = [sum(each) for each in zip(*(row["errors"] for row in rows), strict=True)]
    return errors, [sum(each) for each in zip(*(row["words"] for row in rows), strict=True)]


def _found(context: ContextMode, seed: int) -> list[dict[str, Any]]:
    lines = RESULTS.read_text(encoding="utf-8").splitlines() if RESULTS.exists() else []
    return [row for row in map(json.loads, lines) if (row["context"], row["seed"]) == (context, seed)]


def _append(row: dict[str, Any]) -> None:
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    print({key: value for key, value in row.items() if key not in ("errors", "words")}, flush=True)


if __name__ == "__main__":
    run(main)
