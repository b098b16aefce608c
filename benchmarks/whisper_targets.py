"""Where to put a Whisper adapter: attention, attention + FFN, convolutions, convolutions + attention, at equal size.

    python benchmarks/whisper_targets.py scrambler        # tiny.en, English prompts, inverted spectrum (simulated)
    python benchmarks/whisper_targets.py italian          # multilingual base, Italian prompts as recorded

For each set of targets the learning rate is chosen by word error rate on the development split, with the first seed;
then three seeds are trained at it and measured on held-out sentences. Results go to benchmarks/results/TASK.jsonl, a
line a run, and a run that has its line is not trained again. At the end the README's table is printed.
"""

import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cyclopts import run

import audiolora
from audiolora.speech.data.audio import duration_s
from audiolora.speech.data.manifests import read_utterances
from audiolora.speech.data.split import Split, split_by_text
from audiolora.speech.sound.channels import parse_channel
from audiolora.speech.texts.metrics import error_rates
from audiolora.speech.training.clips import Clips
from audiolora.speech.training.settings import TrainingSettings
from audiolora.speech.whisper.decode import transcribe
from audiolora.speech.whisper.language import set_language, text_normalizer
from audiolora.speech.whisper.training import train_whisper
from audiolora.speech.whisper.weights import load_whisper

RESULTS = Path(__file__).parent / "results"
SEEDS = (0, 1, 2)
MAX_DURATION_S = 10.0
"""Longer prompts are left out: one in twenty-five, and a quarter of the work."""


@dataclass(frozen=True)
class Task:
    """A base, a shift, and sets of targets of (nearly) equal size.

    Args:
        model, data, channel, language: as the recipe takes them.
        ranks: name → rank of each group of modules.
        learning_rates: to choose from.
        epochs: of each run.
        train_clips: how many of the training sentences are used.
    """

    model: str
    data: str
    channel: str
    language: str | None
    ranks: Mapping[str, Mapping[str, int]]
    learning_rates: tuple[float, ...]
    epochs: int
    train_clips: int


TASKS = {
    "scrambler": Task(
        "openai/whisper-tiny.en",
        "prompts-en",
        "invert",
        None,
        {  # 147,456, 147,456, 146,880 and 147,168 parameters
            "attention": {"attention": 8},
            "attention + FFN": {"attention": 3, "ffn": 3},
            "convolutions": {"conv": 68},
            "convolutions + attention": {"conv": 34, "attention": 4},
        },
        (1e-3, 3e-3),
        epochs=5,
        train_clips=240,
    ),
    "italian": Task(
        "openai/whisper-base",
        "prompts-it",
        "clean",
        "it",
        {  # 294,912, 294,912, 294,000 and 295,856 parameters
            "attention": {"attention": 8},
            "attention + FFN": {"attention": 3, "ffn": 3},
            "convolutions": {"conv": 105},
            "convolutions + attention": {"conv": 53, "attention": 4},
        },
        (1e-3, 3e-3),
        epochs=3,
        train_clips=160,
    ),
}


def main(task: str, /, *, threads: int = 1) -> None:
    """Run what is not in the results yet, and print the table.

    Args:
        task: scrambler, or italian.
        threads: of torch.
    """
    torch.set_num_threads(threads)
    plan, path = TASKS[task], RESULTS / f"{task}.jsonl"
    path.parent.mkdir(exist_ok=True)
    utterances = [u for u in read_utterances(plan.data) if duration_s(u.audio) <= MAX_DURATION_S]
    split = split_by_text(utterances, test=100, dev=0.12, seed=0)
    split = replace(split, train=split.train[: plan.train_clips])
    if not _found(path, targets="zero-shot"):
        _append(path, {"targets": "zero-shot", **zero_shot(plan, split)})
    for name, ranks in plan.ranks.items():
        for learning_rate in plan.learning_rates:
            _once(path, plan, split, name, ranks, learning_rate, SEEDS[0])
        best = min(_found(path, targets=name, seed=SEEDS[0]), key=lambda row: row["dev_wer"])["learning_rate"]
        for seed in SEEDS[1:]:
            _once(path, plan, split, name, ranks, best, seed)
    print(table(plan, path))


def zero_shot(plan: Task, split: Split) -> dict[str, Any]:
    """The base at its own 30 s of context."""
    whisper = load_whisper(plan.model)
    language = set_language(whisper.model, whisper.processor, plan.language)
    return {"parameters": 0, **_measure(plan, whisper.model, whisper.processor, split, "full", language)}


def one_run(plan: Task, split: Split, ranks: Mapping[str, int], settings: TrainingSettings) -> dict[str, Any]:
    """Train one adapter and measure it."""
    whisper, channel = load_whisper(plan.model), parse_channel(plan.channel)
    language = set_language(whisper.model, whisper.processor, plan.language)
    torch.manual_seed(settings.seed)
    model = audiolora.adapt(whisper.model, r=ranks, targets=list(ranks))
    with tempfile.TemporaryDirectory() as folder:
        train_whisper(
            model, whisper.processor, Clips(split.train, channel), Clips(split.dev, channel), settings, Path(folder)
        )
    parameters = audiolora.inspect(model).trainable_parameters
    return {"parameters": parameters, **_measure(plan, model, whisper.processor, split, "auto", language)}


def _measure(
    plan: Task, model: torch.nn.Module, processor: Any, split: Split, context: Any, language: str | None
) -> dict[str, Any]:
    rates = {}
    for part, clips in (("dev", split.dev), ("test", split.test)):
        heard = Clips(clips, parse_channel(plan.channel))
        texts = transcribe(model, processor, heard.audios(), context=context, language=language, progress=False)
        references = [utterance.text for utterance in clips]
        rates[part] = error_rates(references, texts, normalize=text_normalizer(processor, plan.language))
    test = rates["test"]
    return {"dev_wer": rates["dev"].wer.value, "test_wer": asdict(test.wer), "test_cer": test.cer.value}


def _once(
    path: Path, plan: Task, split: Split, name: str, ranks: Mapping[str, int], learning_rate: float, seed: int
) -> None:
    key = {"targets": name, "learning_rate": learning_rate, "seed": seed}
    if not _found(path, **key):
        settings = TrainingSettings(epochs=plan.epochs, learning_rate=learning_rate, seed=seed)
        _append(path, {**key, "ranks": dict(ranks), **one_run(plan, split, ranks, settings)})


def _found(path: Path, **key: Any) -> list[dict[str, Any]]:
    lines = path.read_text().splitlines() if path.exists() else []
    return [row for row in map(json.loads, lines) if all(row.get(name) == value for name, value in key.items())]


def _append(path: Path, row: dict[str, Any]) -> None:
    versions = {name: version(name) for name in ("audiolora", "torch", "peft", "transformers")}
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({**row, "versions": versions}) + "\n")
    print(row, flush=True)


def table(plan: Task, path: Path) -> str:
    """The results as Markdown: the mean over seeds, each seed with its bootstrap interval over sentences."""
    (zero,) = _found(path, targets="zero-shot")
    lines = [
        "| targets | parameters | learning rate | WER %, mean | each seed [95 % interval] |",
        "|---|---|---|---|---|",
        f"| zero-shot, 30 s | – | – | {zero['test_wer']['value']:.1f} | {_interval(zero['test_wer'])} |",
    ]
    for name in plan.ranks:
        chosen = min(_found(path, targets=name, seed=SEEDS[0]), key=lambda row: row["dev_wer"])
        rows = sorted(_found(path, targets=name, learning_rate=chosen["learning_rate"]), key=lambda row: row["seed"])
        mean = np.mean([row["test_wer"]["value"] for row in rows])
        each = "; ".join(_interval(row["test_wer"]) for row in rows)
        lines.append(f"| {name} | {chosen['parameters']:,} | {chosen['learning_rate']:g} | {mean:.1f} | {each} |")
    return "\n".join(lines)


def _interval(wer: Mapping[str, float]) -> str:
    return f"{wer['value']:.1f} [{wer['low']:.1f}, {wer['high']:.1f}]"


if __name__ == "__main__":
    run(main)
