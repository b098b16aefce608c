"""The one training loop of a forecaster: transformers' Trainer, early stopping, whole checkpoints, exact resume.

Trained is whatever requires a gradient: a whole network, or the adapters in it. A checkpoint holds just that and the
network's buffers, by name, so an adapter, a bias or a head is kept alike.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import EarlyStoppingCallback, ProgressCallback, Trainer, TrainerCallback, TrainingArguments

from audiolora.adalora_callback import rank_allocation
from audiolora.allocation import adalora_tuner, orthogonality_penalty
from audiolora.checkpoints import NamesAFullDisk, WholeCheckpoints, epochs_to_train, last_whole_checkpoint
from audiolora.diverging import DivergedError
from audiolora.files import write_json
from audiolora.running_statistics import hold_statistics

TRAINED = "trained.safetensors"
"""In a checkpoint: the trained tensors and the buffers. In the run's folder, as ``start.safetensors``: at the start."""

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class FitSettings:
    """How to train.

    Args:
        epochs: passes over the training windows, at most.
        lr: AdamW's peak learning rate; a cosine takes it to zero.
        batch_size: windows a step.
        seed: of the order of the windows and of dropout.
        toward_base: λ of a pull toward the start, λ/2 · Σ (θ - θ_start)², added to the training loss (L2-SP, Li et al.,
            2018, arXiv 1802.01483).
        patience: epochs without a better validation loss before training stops; 0: never before the last.

    Raises:
        ValueError: a number out of its range.
    """

    epochs: int = 20
    lr: float = 1e-3
    batch_size: int = 64
    seed: int = 0
    toward_base: float = 0.0
    patience: int = 5

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch_size", 1), ("patience", 0), ("seed", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
        if not 0 < self.lr < float("inf"):
            raise ValueError(f"lr must be a positive number, got {self.lr!r}; try lr=1e-3")
        if not 0 <= self.toward_base < float("inf"):
            raise ValueError(f"toward_base must be at least 0, got {self.toward_base!r}; try toward_base=1e-3")


class Pairs(torch.utils.data.Dataset):
    """Scaled windows x (N, C, lookback) and targets y (N, horizon), float32; a batch is cut out in one go."""

    def __init__(self, x: torch.Tensor, y: torch.Tensor) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.y)

    def __getitems__(self, rows: Sequence[int]) -> dict[str, torch.Tensor]:
        return {"x": self.x[rows], "y": self.y[rows]}

    def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
        return {"x": self.x[row], "y": self.y[row]}


def fit_net(
    net: nn.Module, loss: Loss, train: Pairs, val: Pairs | None, settings: FitSettings, *, out: Path | None, quiet: bool
) -> pd.DataFrame:
    """Train in place; with ``val`` the epoch of the lowest loss there is what ``net`` holds afterwards.

    With ``out`` a training that was interrupted goes on from its last whole epoch, whatever ``net``'s trained tensors
    are now, and on one machine ends with the same weights; one that is finished gives its result again.

    Args:
        net: x (N, C, lookback) → forecast; what requires a gradient is trained.
        loss: of a forecast and y (N, horizon), a mean.
        train, val: windows to learn from, and to stop by.
        settings: how.
        out: a folder for checkpoints.
        quiet: no progress bar.

    Returns:
        DataFrame ``epoch``, ``loss``, ``val_loss`` (NaN without ``val``), ``best``.

    Raises:
        ValueError: nothing requires a gradient, or ``out`` holds another training.
        DivergedError: no loss is finite.
    """
    if not any(parameter.requires_grad for parameter in net.parameters()):
        raise ValueError(
            "nothing in the network requires a gradient; adapt it (audiolora.adapt) or set requires_grad_(True)"
        )
    with _folder(out) as folder:
        start = _begin(net, folder, settings, (train, val))
        checkpoint = last_whole_checkpoint(folder)
        trainer = _FitTrainer(
            model=net,
            args=_arguments(settings, epochs_to_train(settings.epochs, checkpoint), folder, val is not None),
            train_dataset=train,
            eval_dataset=val,
            data_collator=_as_it_is,
            callbacks=[*rank_allocation(net), WholeCheckpoints(), *_stopping(settings, val)],
            forecast_loss=loss,
            start=start,
            toward_base=settings.toward_base,
        )
        trainer.remove_callback(ProgressCallback)
        if not quiet:
            trainer.add_callback(_Bar)
        try:
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        finally:
            net.eval()
        history = _history(trainer.state)
    _check_finite(history, settings.lr)
    return history


def fingerprint(tensors: Mapping[str, torch.Tensor]) -> str:
    """sha256 of tensors: shapes, types and values, whatever their names and their order.

    Example:
        >>> fingerprint({"a": torch.ones(2)}) == fingerprint({"b": torch.ones(2)})
        True
    """
    digests = []
    for tensor in tensors.values():
        plain = tensor.detach().cpu().contiguous()
        own = hashlib.sha256(f"{tuple(plain.shape)} {plain.dtype}".encode())
        own.update(plain.flatten().view(torch.uint8).numpy().tobytes())
        digests.append(own.digest())
    return hashlib.sha256(b"".join(sorted(digests))).hexdigest()


def trained_tensors(net: nn.Module) -> dict[str, torch.Tensor]:
    """What training may change: parameters that require a gradient, and buffers."""
    parameters = {name: p for name, p in net.named_parameters() if p.requires_grad}
    return {name: tensor.detach() for name, tensor in (parameters | dict(net.named_buffers())).items()}


class _FitTrainer(NamesAFullDisk, Trainer):
    """Trainer with the forecaster's loss, that keeps in its checkpoints what is trained and nothing else."""

    def __init__(
        self, *args: Any, forecast_loss: Loss, start: dict[str, torch.Tensor], toward_base: float, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = False
        self._forecast_loss, self._toward_base = forecast_loss, toward_base
        hold_statistics(self.model)
        self._allocates = adalora_tuner(self.model) is not None
        trained = [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]
        self._from_start = [(p, start[name].to(p.device)) for name, p in trained] if toward_base else []

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = self._forecast_loss(model(inputs["x"]), inputs["y"])
        if model.training and self._allocates:
            loss = loss + orthogonality_penalty(self.model)
        if model.training and self._from_start:
            loss = loss + self._toward_base / 2 * sum((p - start).square().sum() for p, start in self._from_start)
        return loss

    def prediction_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        with torch.no_grad():
            return self.compute_loss(model, self._prepare_inputs(inputs)).detach(), None, None

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        _write_tensors(trained_tensors(self.model), folder / TRAINED)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        _read_tensors(self.model, Path(resume_from_checkpoint) / TRAINED)

    def _load_best_model(self) -> None:
        _read_tensors(self.model, Path(self.state.best_model_checkpoint) / TRAINED)


class _Bar(ProgressCallback):
    """The progress bar alone; the losses are in the table at the end."""

    def on_log(self, *args: Any, **kwargs: Any) -> None:
        pass


def _as_it_is(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return batch


def _stopping(settings: FitSettings, val: Pairs | None) -> list[TrainerCallback]:
    return [EarlyStoppingCallback(settings.patience)] if val is not None and settings.patience else []


@contextmanager
def _folder(out: Path | None) -> Iterator[Path]:
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        yield out
        return
    with tempfile.TemporaryDirectory(prefix="audiolora-fit-") as name:
        yield Path(name)


def _begin(
    net: nn.Module, folder: Path, settings: FitSettings, data: tuple[Pairs, Pairs | None]
) -> dict[str, torch.Tensor]:
    """The trained tensors at the start: noted at the first call, put back into ``net`` at the next ones."""
    trained = trained_tensors(net)
    frozen = {name: p for name, p in net.named_parameters() if name not in trained}
    windows = {f"{i}{part}": getattr(pairs, part) for i, pairs in enumerate(data) if pairs for part in "xy"}
    asked = {
        **asdict(settings),
        "trained": {name: list(tensor.shape) for name, tensor in sorted(trained.items())},
        "frozen weights": fingerprint(frozen),
        "windows": fingerprint(windows),
    }
    noted = folder / "fit.json"
    if not noted.exists():  # written last: with it, the start is there too
        _write_tensors(trained, folder / "start.safetensors")
        write_json(noted, asked)
        return {name: tensor.clone() for name, tensor in trained.items()}
    before = json.loads(noted.read_text(encoding="utf-8"))
    if differing := [name for name in asked if asked[name] != before.get(name)]:
        small = [f"{n}={before.get(n)!r} there, {asked[n]!r} now" for n in differing if n in asdict(settings)]
        rest = [name for name in differing if name not in asdict(settings)]
        raise ValueError(
            f"{folder} holds another training: {'; '.join(small + [f'other {name}' for name in rest])}. Take another "
            "folder as out, or delete this one"
        )
    _read_tensors(net, folder / "start.safetensors")
    return {name: tensor.clone() for name, tensor in trained_tensors(net).items()}


def _write_tensors(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Each tensor by itself: a network may share storage between them, and a file may not."""
    save_file({name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}, path)


def _read_tensors(net: nn.Module, path: Path) -> None:
    found, here = load_file(path), trained_tensors(net)
    assert found.keys() == here.keys(), "checked against fit.json before"
    with torch.no_grad():
        for name, tensor in here.items():
            tensor.copy_(found[name])


def _history(state: Any) -> pd.DataFrame:
    losses: dict[int, dict[str, float]] = {}
    for entry in state.log_history:
        for key, name in (("loss", "loss"), ("eval_loss", "val_loss")):
            if key in entry:
                losses.setdefault(round(entry["epoch"]), {})[name] = entry[key]
    history = pd.DataFrame.from_dict(losses, orient="index", columns=["loss", "val_loss"], dtype=float)
    history = history.rename_axis("epoch").reset_index()
    last = history["epoch"].max()
    best = history["val_loss"].idxmin() if history["val_loss"].notna().any() else None
    return history.assign(best=history.index == best if best is not None else history["epoch"] == last)


def _check_finite(history: pd.DataFrame, lr: float) -> None:
    judged = history["val_loss"] if history["val_loss"].notna().any() else history["loss"].tail(1)
    if not judged.abs().lt(float("inf")).any():
        raise DivergedError(f"no loss was finite, at lr={lr:g}; try a tenth of it, and begin anew")


def _arguments(settings: FitSettings, epochs: int, folder: Path, validated: bool) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=epochs,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=max(256, settings.batch_size),
        learning_rate=settings.lr,
        lr_scheduler_type="cosine",
        weight_decay=0.0,
        seed=settings.seed,
        data_seed=settings.seed,
        use_cpu=not torch.cuda.is_available(),
        eval_strategy="epoch" if validated else "no",
        save_strategy="epoch",
        save_total_limit=None,  # WholeCheckpoints deletes
        restore_callback_states_from_checkpoint=True,  # how long early stopping has been patient
        load_best_model_at_end=validated,
        metric_for_best_model="eval_loss" if validated else None,
        greater_is_better=False if validated else None,
        prediction_loss_only=True,
        logging_strategy="epoch",
        logging_nan_inf_filter=False,  # which would show a finite loss where there is none
        dataloader_pin_memory=torch.cuda.is_available(),
        label_names=["y"],
        remove_unused_columns=False,
        report_to="none",
    )
