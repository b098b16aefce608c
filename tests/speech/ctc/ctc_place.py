"""A base folder, a run's folder with a trained-like adapter, and clips: what the commands work on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import soundfile
import torch

from audiolora.run import open_run
from audiolora.speech.ctc.adapter import adapt_ctc, describe_ctc, save_ctc_adapter
from audiolora.speech.ctc.models import LoadedCtc, load_ctc
from audiolora.speech.ctc.vocabulary import Vocabulary
from tests.export.ctc_models import clips
from tests.speech.ctc.saved_models import save_base


def save_run(
    folder: Path, base: Path, *, vocabulary: Vocabulary | None = None, targets: Any = "both", seed: int = 1
) -> tuple[Any, LoadedCtc]:
    """A run's ``adapter/`` over a base's folder, weights drawn as after training; returns the adapted model."""
    torch.manual_seed(seed)
    loaded = load_ctc(base, vocabulary=vocabulary, replace=vocabulary is not None, log=lambda line: None)
    info = describe_ctc(loaded, str(base), "en")
    adapted = adapt_ctc(loaded, r=2, targets=targets)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn(parameter.shape))
    open_run(folder, {"model": str(base)})
    save_ctc_adapter(adapted.eval(), loaded.processor, folder / "adapter", info, "# A card\n\n| WER | 12 |\n")
    return adapted, loaded


def place(root: Path, **changes: Any) -> Path:
    """``root/base``, ``root/run`` over it, and ``root/clips`` with three of them."""
    save_base(root / "base", **changes)
    save_run(root / "run", root / "base")
    (root / "clips").mkdir()
    for index, clip in enumerate(clips(9_000, 12_000, 16_000)):
        soundfile.write(root / "clips" / f"{index}.wav", clip, 16_000)
    return root
