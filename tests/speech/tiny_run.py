"""A run's folder around a tiny Whisper, as the recipe leaves it, with an adapter that was drawn instead of trained."""

from __future__ import annotations

from pathlib import Path

import torch

import audiolora
from audiolora.run import Run, open_run
from audiolora.speech.texts.metrics import error_rates
from audiolora.speech.whisper.adapter import AdapterInfo, fingerprint, save_adapter
from audiolora.speech.whisper.weights import load_whisper

CARD = "# tiny\n\n| zero-shot | 75.0 |\n\n## Sources and licences\n\n- Speech: nobody's\n"


def tiny_run(
    folder: Path, base: Path, *, method: str = "lora", context: str = "auto", language: str | None = None
) -> Run:
    """A finished run over the model in `base`; its adapter changes what the model says."""
    settings = {"model": str(base), "data": "prompts-en", "channel": "invert", "language": language, "method": method}
    run = open_run(folder, {**settings, "r": {"conv": 3, "attention": 2}})
    whisper = load_whisper(base)
    info = AdapterInfo(str(base), fingerprint(whisper.model), context, language)
    torch.manual_seed(1)
    adapted = audiolora.adapt(whisper.model, method, r={"conv": 3, "attention": 2}, targets=["conv", "attention"])
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    save_adapter(adapted, run.adapter, info, CARD)
    said, heard = ["one two three four", "five six"], (["one", "nine"], ["one two three four", "six"])
    before, after = (error_rates(said, texts, normalize=str.lower, resamples=50) for texts in heard)
    size = (run.adapter / "adapter_model.safetensors").stat().st_size
    whose = {"base": {"name": str(base), "origin": "drawn"}, "settings": settings, "adapter_bytes": size}
    run.write("summary.json", {"before": before, "after": after, **whose})
    return run
