"""The folder of a run, of speech or of series: what it was set to, how far it got, and what it leaves.

runs/NAME/  settings.json   what was asked for; a run only continues under the same settings
            split.json      what is trained on, chosen by, and tested on: utterances, or devices and times
            before.json     speech: the zero-shot texts, so that a resumed run need not decode them again
            training/       checkpoints to resume from
            adapter/        speech: the adapter in PEFT's format, with its model card
            base/, devices/ series: the base, and a folder a device with its adapters and forecasts
            texts.jsonl     speech: each test utterance with its texts, zero-shot and adapted
            metrics.jsonl   the training history
            summary.json    the figures; written last: a run that has it is finished
            report.html     the same figures to look at
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from audiolora.files import WHOLE, write_json


@dataclass(frozen=True)
class Run:
    """One run's folder; open it with `open_run`, or with `read_run` if it must exist."""

    folder: Path
    settings: Mapping[str, Any]

    @property
    def adapter(self) -> Path:
        """The adapter's folder."""
        return self.folder / "adapter"

    @property
    def training(self) -> Path:
        """The folder of checkpoints."""
        return self.folder / "training"

    @property
    def finished(self) -> bool:
        """True if the run came to its end."""
        return (self.folder / "summary.json").exists()

    @property
    def begun(self) -> bool:
        """True if there is something to continue from: the split is chosen, after all checks and before all work."""
        return (self.folder / "split.json").exists()

    def whole_checkpoints(self) -> list[Path]:
        """The checkpoints that were written to their end, oldest first; nothing is changed."""
        whole = [path.parent for path in self.training.glob(f"checkpoint-*/{WHOLE}")]
        return sorted(whole, key=lambda path: int(path.name.rpartition("-")[2]))

    def read(self, name: str) -> Any:
        """One of the run's JSON files, or None if it is not there yet.

        Raises:
            ValueError: the file is not JSON.
        """
        path = self.folder / name
        if not path.exists():
            return None
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path}: not a JSON file ({error}); start the run anew with --fresh") from None

    def write(self, name: str, value: Any) -> None:
        """Write one of the run's JSON files, atomically."""
        write_json(self.folder / name, value)


def open_run(folder: Path, settings: Mapping[str, Any], *, fresh: bool = False) -> Run:
    """Begin a run, or continue one that was interrupted.

    Other settings are refused once the run has `begun`; one that failed its checks may be corrected.

    Args:
        folder: ``runs/NAME``.
        settings: everything that decides the result, as JSON holds it.
        fresh: delete what is there and begin anew.

    Raises:
        ValueError: the folder holds a run with other settings (each difference is named), or something else.
    """
    if fresh and (folder / "settings.json").exists():
        old = folder.with_name(f".{folder.name}.old")  # at no moment half a run under its own name
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
        shutil.rmtree(old)
    run = Run(folder, json.loads(json.dumps(settings)))
    there = run.read("settings.json")
    if there is None:
        if folder.exists() and any(folder.iterdir()):
            raise ValueError(f"{folder} is not empty and holds no run; choose another --name")
        run.write("settings.json", run.settings)
        return run
    differences = [
        f"{key} was {there.get(key)!r}, now {run.settings.get(key)!r}"
        for key in sorted(set(there) | set(run.settings))
        if there.get(key) != run.settings.get(key)
    ]
    if differences and not run.begun:
        run.write("settings.json", run.settings)
    elif differences:
        raise ValueError(
            f"{folder} holds a run with other settings: {'; '.join(differences)}. "
            "Choose another --name, or start it anew with --fresh"
        )
    return run


def read_run(folder: Path) -> Run:
    """A run that exists.

    Raises:
        ValueError: there is no run in the folder.
    """
    if not (folder / "settings.json").exists():
        raise ValueError(f"{folder} holds no run (no settings.json in it); name a folder such as runs/demo")
    return Run(folder, Run(folder, {}).read("settings.json"))
