"""The speech task: a Whisper meets a channel, a language or recordings of one's own."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from audiolora.comparison.trials import Scores
from audiolora.speech.checks.checking import check_for_whisper
from audiolora.speech.data.audio import duration_s
from audiolora.speech.data.manifests import read_utterances
from audiolora.speech.data.prompts import BUILTIN
from audiolora.speech.data.split import keep_split, split_utterances
from audiolora.speech.sound.channels import parse_channel
from audiolora.speech.texts.metrics import utterance_errors
from audiolora.speech.training.clips import Clips
from audiolora.speech.training.settings import TrainingSettings
from audiolora.speech.whisper.collate import WhisperCollator
from audiolora.speech.whisper.context import ContextPolicy, audio_context
from audiolora.speech.whisper.decode import transcribe
from audiolora.speech.whisper.language import set_language, spoken_language, text_normalizer
from audiolora.speech.whisper.training import train_whisper
from audiolora.speech.whisper.weights import load_whisper


@dataclass(frozen=True)
class SpeechTask:
    """A Whisper, recordings with their texts, and how every way is trained.

    Args:
        model: a hub name, a local directory or an OpenAI .pt.
        data: a manifest, a folder, a saved data set, or a built-in set such as prompts-en.
        channel: simulated channels, as the recipe asr_whisper takes them.
        language: Whisper's code; taken from the name of a built-in set.
        epochs: passes over the training clips, for every way.
        train_clips: how many are used; 0 for all.
        test, dev: sentences held out: a number, or a share below 1.
        longest_s: clips over it are left out, seconds.
    """

    model: str = "openai/whisper-tiny.en"
    data: str = "prompts-en"
    channel: str = "invert"
    language: str | None = None
    epochs: int = 5
    train_clips: int = 240
    test: int | float = 100
    dev: int | float = 40
    longest_s: float = 10.0

    def network(self) -> nn.Module:
        """The Whisper."""
        model: nn.Module = load_whisper(self.model).model
        return model

    def prepare(self, folder: Path) -> None:
        """Load the model once, read every clip once, and write down the split."""
        self.open(folder)

    def open(self, folder: Path) -> OpenSpeechTask:
        """In any process; the split is the same everywhere."""
        whisper, sound = load_whisper(self.model), parse_channel(self.channel)
        language = set_language(whisper.model, whisper.processor, spoken_language(self.data, self.language))
        normalize = text_normalizer(whisper.processor, language)
        utterances = check_for_whisper(
            [u for u in read_utterances(self.data) if duration_s(u.audio) <= self.longest_s],
            whisper,
            normalize,
            stretch=sound.stretch,
            skip_bad=self.data in BUILTIN,
        )
        split = split_utterances(utterances, test=self.test, dev=self.dev, seed=0)
        split = replace(split, train=split.train[: self.train_clips or None])
        keep_split(split, folder / "split.json")
        parts = {name: Clips(getattr(split, name), sound) for name in ("train", "dev", "test")}
        return OpenSpeechTask(self, whisper, parts, language, normalize)


class OpenSpeechTask:
    """See `comparison.task.OpenTask`."""

    head: Sequence[str] = ("proj_out",)
    unit = "WER %"

    def __init__(
        self, task: SpeechTask, whisper: Any, parts: dict[str, Clips], language: str | None, normalize: Any
    ) -> None:
        self.task, self.whisper, self.parts = task, whisper, parts
        self.language, self.normalize = language, normalize
        self.steps = task.epochs * -(-len(parts["train"]) // TrainingSettings().batch_size)

    def base(self) -> nn.Module:
        """A copy of the loaded Whisper."""
        return copy.deepcopy(self.whisper.model).requires_grad_(False)

    def fit(self, net: nn.Module, learning_rate: float, seed: int, folder: Path) -> None:
        """As the recipe asr_whisper trains adapters, at short audio context."""
        settings = TrainingSettings(epochs=self.task.epochs, learning_rate=learning_rate, seed=seed)
        train_whisper(net, self.whisper.processor, self.parts["train"], self.parts["dev"], settings, folder)

    def score(self, net: nn.Module, part: str) -> Scores:
        """Wrong words (percent) of each utterance over its words; a base that nothing was trained of hears 30 s."""
        clips = self.parts[part]
        adapted = any(parameter.requires_grad for parameter in net.parameters())
        texts = transcribe(
            net, self.whisper.processor, clips.audios(), context="auto" if adapted else "full",
            language=self.language, progress=False,
        )  # fmt: skip
        found = utterance_errors([u.text for u in clips.utterances], texts, normalize=self.normalize)
        return Scores(tuple(100.0 * u.errors for u in found), tuple(float(u.words) for u in found))

    def loss(self, net: nn.Module) -> torch.Tensor:
        """Of the first training clips."""
        start = self.whisper.model.config.decoder_start_token_id
        collate = WhisperCollator(self.whisper.processor, ContextPolicy("auto"), start, training=False)
        clips = self.parts["train"]
        batch = collate([clips[i] for i in range(min(4, len(clips)))])
        with audio_context(net, batch["input_features"].shape[-1]):
            found: torch.Tensor = net(**batch).loss
        return found
