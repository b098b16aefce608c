"""What training a Whisper adapter costs: a step against PEFT's, short context against 30 s, waiting for data.

    python benchmarks/asr_training.py                # minutes; whisper_context.py has the error rates at either context

Whisper tiny.en on telephone prompts under 5 s. The ways take turns in every round, each time is divided by another of
its own round, and medians are appended to benchmarks/results/asr_training.csv.
"""

import csv
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import peft
import torch
from cyclopts import run
from torch.utils.data import DataLoader

import audiolora
from audiolora.speech.data.audio import duration_s
from audiolora.speech.data.manifests import read_utterances
from audiolora.speech.data.split import split_by_text
from audiolora.speech.sound.channels import parse_channel
from audiolora.speech.training.clips import Clips
from audiolora.speech.whisper.collate import WhisperCollator
from audiolora.speech.whisper.context import ContextPolicy, audio_context
from audiolora.speech.whisper.weights import LoadedWhisper, load_whisper

RESULTS = Path(__file__).parent / "results" / "asr_training.csv"
MODEL, CHANNEL, LONGEST_S, BATCH = "openai/whisper-tiny.en", "invert", 5.0, 4
OURS = {"conv": 34, "attention": 4}
"""147,168 parameters; PEFT's attention at rank 8 has 147,456."""


@dataclass(frozen=True)
class Row:
    """One figure; ``bound`` is what it is to stay under (or, for a speed-up, over)."""

    measure: str
    value: float
    unit: str
    bound: str


def main(*, rounds: int = 15, threads: int = 1) -> None:
    """Measure, print and append.

    Args:
        rounds: of timing; each way is run in each.
        threads: of torch.
    """
    torch.set_num_threads(threads)
    spoken = [u for u in read_utterances("prompts-en") if duration_s(u.audio) <= LONGEST_S]
    split = split_by_text(spoken, test=100, dev=40, seed=0)
    channel = parse_channel(CHANNEL)
    clips = Clips(split.train, channel)
    rows = [*steps(clips, rounds), *waiting(clips, rounds)]
    for row in rows:
        print(f"{row.measure:<66} {row.value:>8.3f} {row.unit:<6} {row.bound}")
    _append(rows, threads)


def steps(clips: Clips, rounds: int) -> list[Row]:
    """Forward, backward and AdamW on batches of like clips."""
    ways = {
        ("audiolora", "auto"): _ours,
        ("PEFT", "auto"): _theirs,
        ("full", "auto"): lambda net: net.requires_grad_(True),
        ("audiolora", "full"): _ours,
    }
    run_one = {key: _stepper(make, clips, key[1]) for key, make in ways.items()}
    times: dict[Any, list[float]] = {key: [] for key in ways}
    for i in range(rounds + 2):
        for key, step in run_one.items():
            seconds = step(i)
            if i >= 2:
                times[key].append(seconds)

    def ratio(one: tuple[str, str], other: tuple[str, str]) -> float:
        return statistics.median(a / b for a, b in zip(times[one], times[other], strict=True))

    short, long = ("audiolora", "auto"), ("audiolora", "full")
    return [
        Row("step: convolutions + attention ÷ PEFT's attention", ratio(short, ("PEFT", "auto")), "×", "<= 1.10"),
        Row("step: convolutions + attention ÷ full tuning", ratio(short, ("full", "auto")), "×", ""),
        Row("step: 30 s of context ÷ the clips' own", ratio(long, short), "×", ">= 4"),
    ]


def waiting(clips: Clips, rounds: int) -> list[Row]:
    """The share of a training's time in which the model waits for its next batch; nothing is kept in memory."""
    rows = []
    for workers in (0, 1):
        clips_read = Clips(clips.utterances, clips.channel)
        clips_read._kept = None  # as for a set of more than an hour
        whisper = load_whisper(MODEL, log=_silent)
        net = _ours(whisper.model)
        loader = DataLoader(
            clips_read, BATCH, shuffle=True, num_workers=workers, collate_fn=_collator(whisper, "auto"),
            generator=torch.Generator().manual_seed(0),
        )  # fmt: skip
        optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=0.0)
        waited = worked = 0.0
        batches: Iterator[Any] = iter(loader)
        for i in range(2 * rounds):
            begin = time.perf_counter()
            batch = next(batches)
            ready = time.perf_counter()
            _train(net, optimizer, batch)
            if i >= 2:
                waited, worked = waited + ready - begin, worked + time.perf_counter() - ready
        share = 100 * waited / (waited + worked)
        rows.append(Row(f"waiting for data, {workers} workers", share, "%", "< 5" if workers else ""))
    return rows


def _ours(net: torch.nn.Module) -> torch.nn.Module:
    torch.manual_seed(0)
    return audiolora.adapt(net, r=OURS, targets=list(OURS))


def _theirs(net: torch.nn.Module) -> torch.nn.Module:
    config = peft.LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], lora_dropout=0.0)
    return peft.get_peft_model(net, config)


def _stepper(make: Callable[[Any], Any], clips: Clips, context: Any) -> Callable[[int], float]:
    whisper = load_whisper(MODEL, log=_silent)
    net = make(whisper.model.requires_grad_(False)).train()
    collate = _collator(whisper, context)
    batches = [collate([clips[(BATCH * i + j) % len(clips)] for j in range(BATCH)]) for i in range(4)]
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=0.0)

    def step(i: int) -> float:
        begin = time.perf_counter()
        _train(net, optimizer, batches[i % len(batches)])
        return time.perf_counter() - begin

    return step


def _train(net: torch.nn.Module, optimizer: torch.optim.Optimizer, batch: Any) -> None:
    optimizer.zero_grad()
    with audio_context(net, batch["input_features"].shape[-1]):
        net(**batch).loss.backward()
    optimizer.step()


def _collator(whisper: LoadedWhisper, context: Any) -> WhisperCollator:
    start = whisper.model.config.decoder_start_token_id
    return WhisperCollator(whisper.processor, ContextPolicy(context), start, training=False)


def _append(rows: list[Row], threads: int) -> None:
    new = not RESULTS.exists()
    with RESULTS.open("a", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, [*asdict(rows[0]), "threads", "torch", "peft"])
        if new:
            table.writeheader()
        for row in rows:
            table.writerow(asdict(row) | {"threads": threads, "torch": torch.__version__, "peft": peft.__version__})


def _silent(line: str) -> None:
    pass


if __name__ == "__main__":
    run(main)
