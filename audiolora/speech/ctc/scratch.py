"""A small wav2vec2 trained from scratch on real recordings of spoken digits, for where no pretrained one can be had.

It hears ten words and is no substitute for a pretrained model; it is a base on which adapters in convolutions and in
attention can be tried and compared within minutes. It is trained once, on the official split of the Free Spoken Digit
Dataset (indices 0 to 4 are the test), and kept in the cache.
"""

from __future__ import annotations

import shutil
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from audiolora.files import folder_beside, replace_folder, write_json, write_text
from audiolora.packages import Log, cache_dir

if TYPE_CHECKING:
    from audiolora.speech.ctc.models import LoadedCtc
    from audiolora.speech.ctc.settings import CtcTrainingSettings

NAME = "scratch:spoken-digits"
"""What `load_ctc` and ``--model`` take."""

_VERSION = "v2"
"""Part of the folder's name: another network or training makes another folder instead of reading this one."""

_FACTS = "scratch.json"

# Frames of 20 ms, as in the published models. The first convolutions see the most frames, so they are the narrowest.
_NETWORK: dict[str, Any] = {
    "hidden_size": 192,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 768,
    "conv_dim": (64, 64, 96, 96, 128, 128, 128),
    "num_conv_pos_embeddings": 32,
    "num_conv_pos_embedding_groups": 16,
    "do_stable_layer_norm": True,
    "layerdrop": 0.0,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "feat_proj_dropout": 0.0,
    "final_dropout": 0.0,
}

_CARD = """---
library_name: transformers
pipeline_tag: automatic-speech-recognition
tags: [audiolora, wav2vec2]
language: en
---

# A small wav2vec2, trained from scratch here

Not pretrained: {parameters:,} parameters, trained from random weights on {n_train:,} recordings of spoken digits.
Word error rate {wer:.1f} % on the {n_test} of the official test split, after {epochs} epochs in
{cpu_minutes:.1f} CPU-minutes.

Data: {attribution} (Free Spoken Digit Dataset), {licence}.
"""


def load_scratch(*, log: Log = print) -> LoadedCtc:
    """The small wav2vec2 (2M parameters) trained from scratch on `spoken-digits`: once, then kept in the cache.

    The first call takes about nine minutes of a CPU. An interrupted training is continued by the next call.

    Args:
        log: called with a sentence for each thing worth knowing.

    Raises:
        DataError: it has yet to be trained, and the recordings are not on this machine.
        ValueError: it has yet to be trained, and this is one of several processes.

    Example:
        >>> load_scratch().origin  # doctest: +SKIP
        'trained from scratch here on spoken digits (14.3 % WER on their test split)'
    """
    from audiolora.speech.ctc.models import LoadedCtc, load_ctc

    folder = scratch_folder()
    if not (folder / "config.json").is_file():
        _train_alone(folder, log)
    loaded = load_ctc(folder, log=log)
    wer = _facts(folder)["wer"]
    origin = f"trained from scratch here on spoken digits ({wer:.1f} % WER on their test split), kept in {folder}"
    return LoadedCtc(loaded.model, loaded.processor, origin, NAME)


def scratch_folder() -> Path:
    """Where the trained model is kept."""
    return cache_dir() / "ctc" / f"spoken-digits-scratch-{_VERSION}"


def scratch_settings() -> CtcTrainingSettings:
    """How it is trained."""
    from audiolora.speech.ctc.settings import CtcTrainingSettings

    return CtcTrainingSettings(epochs=12, batch_size=8, learning_rate=1e-3, warmup=0.1, adam_beta2=0.999, seed=0)


def make_scratch(letters: list[str], seed: int = 0, **changes: Any) -> tuple[Any, Any]:
    """The network with random weights, and its processor.

    Args:
        letters: that its alphabet is built from, as texts.
        seed: of the weights.
        changes: of the network's `Wav2Vec2Config`.
    """
    import torch
    from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2ForCTC, Wav2Vec2Processor

    from audiolora.speech.ctc.vocabulary import build_vocabulary, make_tokenizer

    vocabulary = build_vocabulary(letters)
    torch.manual_seed(seed)
    size = {"vocab_size": len(vocabulary.tokens), "pad_token_id": 0}
    model = Wav2Vec2ForCTC(Wav2Vec2Config(**{**_NETWORK, **size, **changes}))
    tokenizer = make_tokenizer(vocabulary)
    return model, Wav2Vec2Processor(feature_extractor=Wav2Vec2FeatureExtractor(), tokenizer=tokenizer)


def train_scratch(folder: Path, settings: CtcTrainingSettings, *, log: Log = print, **changes: Any) -> None:
    """Train the small wav2vec2 and put it into ``folder``, whole or not at all.

    Checkpoints lie beside it while it is trained; an interrupted training is continued from the last.

    Args:
        folder: where to; a folder that `load_ctc` reads.
        settings: of the training.
        log: called with a sentence for each thing worth knowing.
        changes: of the network's `Wav2Vec2Config`.

    Raises:
        DataError: the recordings are not on this machine.
    """
    from audiolora.speech.ctc.training import train_ctc
    from audiolora.speech.data.prompts import load_spoken_digits
    from audiolora.speech.sound.channels import parse_channel
    from audiolora.speech.training.clips import Clips

    utterances, clean = load_spoken_digits(), parse_channel("clean")
    parts = {part: Clips([u for u in utterances if u.part == part], clean) for part in ("train", "dev", "test")}
    model, processor = make_scratch([u.text for u in utterances], settings.seed, **changes)
    size = sum(parameter.numel() for parameter in model.parameters())
    log(
        f"training a small wav2vec2 ({size / 1e6:.1f}M parameters) from scratch on {len(parts['train'])} recordings of "
        f"spoken digits, {settings.epochs} epochs; this happens once"
    )
    training, started = folder.with_name(f"{folder.name}.training"), time.process_time()
    train_ctc(model, processor, parts["train"], parts["dev"], settings, training)
    facts = {
        "parameters": size,
        "n_train": len(parts["train"]),
        "n_test": len(parts["test"]),
        "epochs": settings.epochs,
        "cpu_minutes": (time.process_time() - started) / 60,
        "wer": _wer(model, processor, parts["test"]),
    }
    log(f"trained from scratch: {facts['wer']:.1f} % WER on {facts['n_test']} recordings of the test split")
    with folder_beside(folder) as new:
        _write(model, processor, new, facts)
        replace_folder(new, folder)
    shutil.rmtree(training)


def _train_alone(folder: Path, log: Log) -> None:
    """One process trains; another one that wants the same waits for it."""
    from huggingface_hub.utils import WeakFileLock

    from audiolora.speech.training.trainer import this_process

    if this_process().num_processes > 1:
        raise ValueError(
            f"{NAME} has yet to be trained, which one process does: run the same command once without a launcher"
        )
    log(f"no {NAME} in {folder} yet")
    folder.parent.mkdir(parents=True, exist_ok=True)
    # The Trainer prints its losses to stdout, where commands write their results.
    with WeakFileLock(folder.with_name(f"{folder.name}.lock")), redirect_stdout(sys.stderr):
        if not (folder / "config.json").is_file():
            train_scratch(folder, scratch_settings(), log=log)


def _wer(model: Any, processor: Any, clips: Any) -> float:
    """In per cent."""
    import jiwer

    from audiolora.speech.ctc.decode import transcribe_ctc

    texts = transcribe_ctc(model.eval(), processor, clips.audios())
    return 100 * float(jiwer.wer([utterance.text for utterance in clips.utterances], texts))


def _write(model: Any, processor: Any, folder: Path, facts: dict[str, Any]) -> None:
    from audiolora.speech.data.prompts import BUILTIN

    digits = BUILTIN["spoken-digits"]
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    write_json(folder / _FACTS, facts)
    write_text(folder / "README.md", _CARD.format(**facts, attribution=digits.attribution, licence=digits.licence))


def _facts(folder: Path) -> dict[str, Any]:
    import json

    facts: dict[str, Any] = json.loads((folder / _FACTS).read_text(encoding="utf-8"))
    return facts
