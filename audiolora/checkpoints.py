"""Checkpoints of transformers' Trainer that a kill at any moment leaves usable; speech and series train with them."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from accelerate import PartialState
from safetensors import SafetensorError
from transformers import TrainerCallback

from audiolora.files import WHOLE, write_text


class WholeCheckpoints(TrainerCallback):
    """Marks a checkpoint when all of it is on disk, and only then lets older ones go.

    One without the mark was interrupted and is not resumed from. transformers deletes older checkpoints before this, so
    it is told to keep all, and they are deleted here: the newest whole one and the best so far are always there.
    """

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.best_global_step:  # the folder may have been moved since the checkpoint noted its path
            state.best_model_checkpoint = str(_checkpoint(args.output_dir, state.best_global_step))
        if state.global_step and state.is_world_process_zero:
            _delete_others(args.output_dir, state)  # a kill may have come before it

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        PartialState().wait_for_everyone()  # each process writes the state of its own random generators
        if not state.is_world_process_zero:
            return
        newest = _checkpoint(args.output_dir, state.global_step)
        for path in newest.rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        write_text(newest / WHOLE, "")
        _delete_others(args.output_dir, state)


class NamesAFullDisk:
    """For a Trainer: a checkpoint that cannot be written is an error that says so, and what is left."""

    args: Any
    state: Any

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        try:
            super()._save_checkpoint(*args, **kwargs)  # type: ignore[misc]
        except (OSError, RuntimeError, SafetensorError) as error:  # torch turns a full disk into a RuntimeError
            raise OSError(
                f"{self.args.output_dir}: checkpoint-{self.state.global_step} could not be written "
                f"({error.__context__ or error}); is the disk full? Free some space, and the same command continues "
                "from the last whole checkpoint"
            ) from error


def last_whole_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end; those that were not are removed."""
    whole: list[Path] = []
    for checkpoint in folder.glob("checkpoint-*"):
        if (checkpoint / WHOLE).exists():
            whole.append(checkpoint)
        else:
            shutil.rmtree(checkpoint)
    return max(whole, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def epochs_to_train(epochs: int, checkpoint: Path | None) -> int:
    """The epochs to train: as set, or as many as were trained where the checkpoint says that training had stopped."""
    if checkpoint is None:
        return epochs
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    stopped = state["stateful_callbacks"]["TrainerControl"]["args"]["should_training_stop"]
    return round(state["epoch"]) if stopped else epochs


def check_processes(checkpoint: Path, processes: int) -> None:
    """Of every process a checkpoint holds the random generators, and its steps are of all their clips together.

    Raises:
        ValueError: it was written by another number of processes than will go on from it.
    """
    states = len(list(checkpoint.glob("rng_state*.pth")))
    if states != processes:
        raise ValueError(
            f"{checkpoint}: written by {states} processes at work together, and now there are {processes}, which would "
            "take other steps; start as many as before, or anew with --fresh"
        )


def _checkpoint(folder: str, step: int) -> Path:
    return Path(folder) / f"checkpoint-{step}"


def _delete_others(folder: str, state: Any) -> None:
    """All but the newest whole checkpoint and the best."""
    kept = {_checkpoint(folder, step) for step in (state.global_step, state.best_global_step) if step}
    for older in set(Path(folder).glob("checkpoint-*")) - kept:
        (older / WHOLE).unlink(missing_ok=True)  # first: it may be interrupted half deleted
        shutil.rmtree(older)
