"""The CTC task: a model of the wav2vec2 family meets a channel, a language or recordings of one's own."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from audiolora.comparison.trials import Scores
from audiolora.speech.ctc.checking import check_for_ctc
from audiolora.speech.ctc.collate import CtcCollator
from audiolora.speech.ctc.decode import transcribe_ctc
from audiolora.speech.ctc.frames import FrameCount
from audiolora.speech.ctc.heads import head_of
from audiolora.speech.ctc.models import LoadedCtc, load_ctc
from audiolora.speech.ctc.scratch import NAME, make_scratch
from audiolora.speech.ctc.settings import CtcTrainingSettings
from audiolora.speech.ctc.training import train_ctc
from audiolora.speech.ctc.vocabulary import spelling
from audiolora.speech.data.manifests import read_utterances
from audiolora.speech.data.prompts import BUILTIN
from audiolora.speech.data.split import keep_split, split_utterances
from audiolora.speech.data.utterance import Utterance
from audiolora.speech.sound.channels import parse_channel
from audiolora.speech.texts.metrics import utterance_errors
from audiolora.speech.training.clips import Clips
from audiolora.speech.whisper.language import spoken_language


@dataclass(frozen=True)
class CtcTask:
    """A CTC model, recordings with their texts, and how every way is trained.

    Args:
        model: a hub name, a local directory, or scratch:spoken-digits.
        data: a manifest, a folder, a saved data set, or a built-in set such as spoken-digits.
        channel: simulated channels, as the recipe asr_ctc takes them.
        language: code of the texts' language; taken from the name of a built-in set.
        epochs: passes over the training clips, for every way.
        train_clips: how many are used; 0 for all.
        batch_size: clips a step.
        test, dev: held out: a number, or a share below 1; None takes the data's own parts, else 100 and 0.12.
    """

    model: str = "scratch:spoken-digits"
    data: str = "spoken-digits"
    channel: str = "ssb+500Hz"
    language: str | None = None
    epochs: int = 3
    train_clips: int = 1000
    batch_size: int = 8
    test: int | float | None = None
    dev: int | float | None = None

    def network(self) -> nn.Module:
        """The CTC model; not yet trained, where it is trained from scratch here."""
        model: nn.Module = make_scratch(["zero"])[0] if self.model == NAME else load_ctc(self.model).model
        return model

    def prepare(self, folder: Path) -> None:
        """Load the model once (or train it, where it is trained from scratch here), check the clips, split them."""
        self.open(folder)

    def open(self, folder: Path) -> OpenCtcTask:
        """In any process; the split is the same everywhere."""
        loaded, sound = load_ctc(self.model), parse_channel(self.channel)
        language = spoken_language(self.data, self.language)
        utterances = check_for_ctc(
            read_utterances(self.data),
            loaded,
            language=language,
            stretch=sound.stretch,
            skip_bad=self.data in BUILTIN,
        )
        split = split_utterances(utterances, test=self.test, dev=self.dev, seed=0)
        split = replace(split, train=_some(split.train, self.train_clips))
        keep_split(split, folder / "split.json")
        parts = {name: Clips(getattr(split, name), sound) for name in ("train", "dev", "test")}
        return OpenCtcTask(self, loaded, parts, language)


def _some(utterances: Sequence[Utterance], number: int) -> tuple[Utterance, ...]:
    """As many of them, drawn by their ids; 0 for all. A split stands in groups of one text, here of one digit."""
    drawn = sorted(utterances, key=lambda utterance: hashlib.sha256(utterance.id.encode()).digest())
    return tuple(drawn[: number or None])


class OpenCtcTask:
    """See `comparison.task.OpenTask`."""

    unit = "WER %"

    def __init__(self, task: CtcTask, loaded: LoadedCtc, parts: dict[str, Clips], language: str | None) -> None:
        self.task, self.loaded, self.parts, self.language = task, loaded, parts, language
        self.head: Sequence[str] = (head_of(loaded.model)[0],)
        self.normalize: Callable[[str], str] = spelling(loaded.processor, language=language)
        self.steps = task.epochs * -(-len(parts["train"]) // task.batch_size)

    def base(self) -> nn.Module:
        """A copy of the loaded model."""
        return copy.deepcopy(self.loaded.model).requires_grad_(False)

    def fit(self, net: nn.Module, learning_rate: float, seed: int, folder: Path) -> None:
        """As the recipe asr_ctc trains adapters."""
        settings = CtcTrainingSettings(
            epochs=self.task.epochs, batch_size=self.task.batch_size, learning_rate=learning_rate, seed=seed
        )
        clips, processor = self.parts, self.loaded.processor
        train_ctc(net, processor, clips["train"], clips["dev"], settings, folder, language=self.language)

    def score(self, net: nn.Module, part: str) -> Scores:
        """Wrong words (percent) of each utterance over its words."""
        clips = self.parts[part]
        texts = transcribe_ctc(net, self.loaded.processor, clips.audios(), progress=False)
        found = utterance_errors([u.text for u in clips.utterances], texts, normalize=self.normalize)
        return Scores(tuple(100.0 * u.errors for u in found), tuple(float(u.words) for u in found))

    def loss(self, net: nn.Module) -> torch.Tensor:
        """Of the first training clips."""
        frames = FrameCount.of(net, self.loaded.processor.feature_extractor)
        collate = CtcCollator(frames, self.loaded.processor, self.language)
        clips = self.parts["train"]
        found: torch.Tensor = net(**collate([clips[i] for i in range(min(4, len(clips)))])).loss
        return found
