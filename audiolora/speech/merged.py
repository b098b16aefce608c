"""What every merged or converted model has to be: the same function as the adapted one, in a place of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

TOLERANCE = 1e-4
"""The largest difference of logits between adapted and merged model, as a share of the largest logit (at least 1)."""


class MergeError(ValueError):
    """A merged model that could not be written, or is not the same function as the adapted one."""


def same_logits(found: torch.Tensor, expected: torch.Tensor, called: str = "the merged model") -> float:
    """The largest difference between what a written model gives on a test input and what it should give.

    Args:
        found, expected: logits of one shape.
        called: the written model, in the error.

    Raises:
        MergeError: they differ by more than rounding explains.
    """
    difference = float((found.float() - expected).abs().max()) if found.shape == expected.shape else float("nan")
    allowed = TOLERANCE * max(1.0, float(expected.abs().max()))
    if not difference <= allowed:  # also where it is NaN
        raise MergeError(
            f"{called} is not the adapted one: on a test input its logits {tuple(found.shape)} differ by "
            f"{difference:.3g}, and rounding explains {allowed:.1g}; nothing was written"
        )
    return difference


def save_plain(model: Any, processor: Any, folder: Path) -> None:
    """What ``from_pretrained`` reads: weights, configs, tokenizer and feature extractor; readable like other files.

    Raises:
        MergeError: the weights could not be written.
    """
    from safetensors import SafetensorError

    try:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
    except SafetensorError as error:
        raise MergeError(f"{folder.parent}: the merged model could not be written: {error}; free some space") from error
    folder.chmod(0o755)  # mkdtemp made it private, and safetensors its file
    for file in folder.iterdir():
        file.chmod((folder / "config.json").stat().st_mode)


def check_out(out: Path, sources: Sequence[Path], overwrite: bool) -> None:
    """Nothing if a merged model may be written to ``out``.

    Args:
        out: a folder, there or not.
        sources: what must not be deleted with it: adapter and base.
        overwrite: replace a model that is there.

    Raises:
        ValueError: it may not.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; name a folder with --out")
    if not out.exists() or not any(out.iterdir()):
        return
    if not overwrite:
        raise ValueError(
            f"{out} is not empty; name another folder with --out, or replace the model in it with --overwrite"
        )
    if any(source.resolve().is_relative_to(out.resolve()) for source in sources):
        raise ValueError(f"{out} holds the adapter or its base model; name another folder with --out")
    if not (out / "config.json").is_file():
        raise ValueError(f"{out} holds something else than a model (no config.json), which --overwrite does not delete")


def adapter_name(adapter: Path) -> str:
    """What people call it: the run's name, its name on the hub, or the folder's."""
    folder = adapter.resolve()
    if folder.parent.name == "snapshots":  # the hub's cache calls folders by their commits
        return folder.parents[1].name.removeprefix("models--").replace("--", "/")
    return folder.parent.name if folder.name == "adapter" else folder.name
