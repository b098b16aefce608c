"""Trainings small enough for a test: generated clips, a random Whisper, and a kill where one likes."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import resource
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from transformers import TrainerCallback, WhisperForConditionalGeneration, WhisperProcessor

import audiolora
from audiolora import checkpoints
from audiolora.speech.data.manifests import Utterance, read_utterances
from audiolora.speech.sound.channels import parse_channel
from audiolora.speech.training.clips import Clips
from audiolora.speech.training.settings import TrainingSettings
from audiolora.speech.training.trainer import this_process
from audiolora.speech.whisper import training
from audiolora.speech.whisper.base_bits import quantize_base

WORDS = "amber birch cedar dune ember fern grove heron iris juniper".split()


def write_clips(folder: Path, n: int = 14) -> Path:
    """A manifest of `n` clips, 0.3 to 0.8 s long, each a tone in noise with a text of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    rows = []
    for index in range(n):
        t = np.arange(int(16_000 * (0.3 + 0.5 * index / n))) / 16_000
        tone = 0.3 * np.sin(2 * np.pi * (200 + 60 * index) * t) + 0.02 * rng.standard_normal(len(t))
        soundfile.write(folder / f"{index}.wav", tone.astype(np.float32), 16_000)
        rows.append(
            {"audio": f"{index}.wav", "text": f"{WORDS[index % 10]} {WORDS[index // 10]}", "id": f"clip{index}"}
        )
    manifest = folder / "clips.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return manifest


@dataclass(frozen=True)
class Job:
    """One call of `train_whisper`, and the moment at which its process is killed, if any.

    With `dev_text`, a text that is nothing like those trained on, the development loss rises again.
    """

    whisper: Path
    manifest: Path
    folder: Path
    settings: TrainingSettings
    method: str = "lora"
    dropout: float = 0.0
    dev_text: str | None = None
    base_bits: int = 32
    dies: str | None = None
    at_step: int = 0


def train(job: Job) -> None:
    """Train on all clips of the manifest but three, which are the development part."""
    torch.set_num_threads(1)
    if job.settings.workers:  # otherwise each of them would import everything anew
        multiprocessing.set_start_method("fork", force=True)
    clips = read_utterances(job.manifest)
    dev = [clip if job.dev_text is None else replace(clip, text=job.dev_text) for clip in clips[:3]]
    fit(job, clips[3:], dev)


def fit(job: Job, train: list[Utterance], dev: list[Utterance]) -> list[dict[str, float]]:
    """Train, write the adapter's weights to `final.pt`, and return the history."""
    whisper = WhisperForConditionalGeneration.from_pretrained(job.whisper)
    quantize_base(whisper, job.base_bits)
    processor = WhisperProcessor.from_pretrained(job.whisper)
    torch.manual_seed(0)
    model = audiolora.adapt(whisper, job.method, r=2, dropout=job.dropout)
    callbacks: list[TrainerCallback] = [_Began(job.folder / "began.txt")]
    if job.dies is not None:
        callbacks.append(_Killer(job.at_step, MOMENTS[job.dies]))
    channel = parse_channel("noise20dB")
    history = training.train_whisper(
        model,
        processor,
        Clips(train, channel),
        Clips(dev, channel),
        job.settings,
        job.folder,
        callbacks=callbacks,
    )
    weights = {name: tensor.detach() for name, tensor in model.named_parameters() if "lora_" in name}
    if this_process().is_main_process:
        torch.save(weights, job.folder / "final.pt")
    return history


def final(folder: Path) -> dict[str, torch.Tensor]:
    """The weights that a training ended with."""
    return torch.load(folder / "final.pt")


class _Began(TrainerCallback):
    """Notes the steps at which trainings begin, a line each."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        with self.path.open("a") as file:
            file.write(f"{state.global_step}\n")


def die() -> None:
    """What `kill -9` does."""
    os.kill(os.getpid(), signal.SIGKILL)


class _Killer(TrainerCallback):
    """From the end of step `at_step` on, death waits at one place."""

    def __init__(self, at_step: int, arm: Callable[[], Any]) -> None:
        self.at_step, self.arm = at_step, arm

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.at_step:
            self.arm()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # after the mark
        if state.global_step == self.at_step and self.arm is after_the_mark:
            die()


def after_the_mark() -> None:
    """Nothing to prepare: `_Killer.on_save` runs after the checkpoint was marked."""


def in_the_adapter() -> None:
    """Die with half of the checkpoint's adapter written."""
    import peft.peft_model
    import safetensors.torch

    def half(tensors: dict[str, torch.Tensor], path: str, **kwargs: Any) -> None:
        data = safetensors.torch.save(tensors)
        Path(path).write_bytes(data[: len(data) // 2])
        die()

    peft.peft_model.safe_save_file = half


def in_the_optimizer() -> None:
    """Die with half of the checkpoint's optimizer written."""
    save = torch.save

    def half(state: Any, path: Any, *args: Any, **kwargs: Any) -> None:
        if not str(path).endswith("optimizer.pt"):
            return save(state, path, *args, **kwargs)
        buffer = io.BytesIO()
        save(state, buffer)
        Path(path).write_bytes(buffer.getvalue()[: buffer.tell() // 2])
        return die()

    torch.save = half


def before_the_mark() -> None:
    """Die when everything is written but the mark."""
    checkpoints.write_text = lambda *args: die()  # type: ignore[assignment]


def in_deleting_the_old() -> None:
    """Die when the old checkpoint is half deleted."""

    def half(path: Path, *args: Any, **kwargs: Any) -> None:
        (Path(path) / "optimizer.pt").unlink()
        die()

    shutil.rmtree = half  # type: ignore[assignment]


def with_a_full_disk() -> None:
    """From now on no file grows over 16 kB: the adapter fits, the optimizer does not."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (16_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def interrupted() -> None:
    """What Ctrl-C does."""
    raise KeyboardInterrupt


def before_the_best_is_loaded() -> None:
    """Die when training is over, and the best epoch not yet taken."""
    training.WhisperTrainer._load_best_model = lambda self: die()  # type: ignore[method-assign]


MOMENTS: dict[str, Callable[[], Any]] = {
    "mid-epoch": die,
    "adapter": in_the_adapter,
    "optimizer": in_the_optimizer,
    "before the mark": before_the_mark,
    "after the mark": after_the_mark,
    "deleting": in_deleting_the_old,
    "full disk": with_a_full_disk,
    "interrupt": interrupted,
    "before the best": before_the_best_is_loaded,
}
