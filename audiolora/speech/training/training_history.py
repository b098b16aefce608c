"""A training's history, the same whether it was interrupted or not, and checkpoints within an epoch."""

import json
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast
from transformers import TrainerCallback

from audiolora.files import write_text

_WRITE_EVERY_S = 5.0


class History(TrainerCallback):
    """Keeps ``metrics.jsonl`` equal to the trainer's own history, which a resume takes back to its checkpoint.

    What clocks say is left out, and so is the last entry: the loss in it is of the steps since the last resume.

    Args:
        path: the file; written anew, as a whole, every few seconds at most, and at each checkpoint.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._written_s = -_WRITE_EVERY_S

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if time.monotonic() >= self._written_s + _WRITE_EVERY_S:
            self._write(state)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._write(state)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._write(state)

    def _write(self, state: Any) -> None:
        if state.is_world_process_zero:
            kept = (_without_clocks(entry) for entry in state.log_history if "train_loss" not in entry)
            write_text(self.path, "".join(json.dumps(entry, sort_keys=True) + "\n" for entry in kept))
            self._written_s = time.monotonic()


def _without_clocks(entry: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in entry.items() if not name.endswith(("_runtime", "_per_second"))}


class SavesWithinEpochs(TrainerCallback):
    """Checkpoints after so many steps or minutes, beside those after each epoch.

    Every checkpoint follows a logged step, for the mean loss of half a logging interval would be lost in a resume: the
    end of an epoch and every ``steps`` are logged too, and the minutes wait for the next logged step.

    Args:
        steps: save after every so many; 0 does not.
        minutes: save when so many have passed since the last checkpoint; 0 does not.
    """

    def __init__(self, steps: int, minutes: float) -> None:
        self.steps, self.minutes = steps, minutes
        self._saved_s = time.monotonic()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._saved_s = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if float(state.epoch).is_integer():  # saved when the epoch is evaluated, and under the same name
            return
        if self.steps and state.global_step % self.steps == 0:
            control.should_log = control.should_save = True
        elif self.minutes and control.should_log and self._is_time():
            control.should_save = True

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_log = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._saved_s = time.monotonic()

    def _is_time(self) -> bool:
        """By the clock of the first process: all of them save together."""
        process = PartialState()
        due = torch.tensor(time.monotonic() >= self._saved_s + 60 * self.minutes, device=process.device)
        return bool(broadcast(due.int()) if process.num_processes > 1 else due)
