"""Training a fleet: every device takes its own step, many devices to a pass.

A pass is a chunk of devices with equally large batches, as many as are fast together (`conv.plan.devices_at_once`). The
sum of their losses has for its gradient each device's own, since they share no parameter; then each row takes a step
of AdamW with its own moments, step count and learning rate. A device that is done leaves the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, fields
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from audiolora.fleet import checkpoint
from audiolora.fleet.adamw import AdamW
from audiolora.fleet.batches import Samples, Table, batch_order
from audiolora.fleet.history import DeviceHistory, History

if TYPE_CHECKING:
    from audiolora.fleet.fleet import Fleet

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
LOSSES: dict[str, Loss] = {"mse": F.mse_loss, "mae": F.l1_loss, "huber": F.huber_loss}
"""By name; each is the mean over a device's batch."""

_NOT_THE_OUTCOME = ("progress", "watch", "save_every_s", "devices_at_once")


@dataclass(frozen=True)
class Settings:
    """How a fleet is trained.

    Args:
        loss: ``"mse"``, ``"mae"``, ``"huber"``, or a function of one device's outputs (b, …) and targets (b, …) to a
            number, which ``torch.func.vmap`` can map over devices.
        epochs, steps: how long; one of the two.
        batch_size: samples of a device a step; its last batch of an epoch may be smaller.
        lr, betas, eps, weight_decay: AdamW's.
        lr_scale: device → factor on ``lr``; 1 where it has none.
        val_every: steps between validations; None for once an epoch.
        patience: validations without a new best after which a device stops; None for never.
        toward, pull: adds pull · ‖θ - anchor‖² to a device's loss, the anchor being its ``"start"`` in this training or
            the fleet's ``"mean"`` before each step.
        seed: for the order of each device's samples (`batch_order`).
        progress: show a progress bar.
        watch: called after each step with the history so far, e.g. for a progress bar of one's own.
        save_every_s: seconds between checkpoints, where there is a folder for them.
        devices_at_once: None for the plan's number.

    Raises:
        ValueError: a setting outside of its range.
    """

    loss: str | Loss = "mse"
    epochs: int | None = None
    steps: int | None = None
    batch_size: int = 32
    lr: float = 1e-3
    lr_scale: Mapping[str, float] = field(default_factory=dict)
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.01
    val_every: int | None = None
    patience: int | None = None
    toward: str | None = None
    pull: float = 0.0
    seed: int = 0
    progress: bool = True
    watch: Callable[[Mapping[str, DeviceHistory]], None] | None = None
    save_every_s: float = 60.0
    devices_at_once: int | None = None

    def __post_init__(self) -> None:
        self.optimiser()
        if isinstance(self.loss, str) and self.loss not in LOSSES:
            raise ValueError(f"loss must be one of {tuple(LOSSES)} or a function, got {self.loss!r}")
        if (self.epochs is None) == (self.steps is None):
            raise ValueError(f"give epochs or steps, got epochs={self.epochs!r} and steps={self.steps!r}")
        for name in ("epochs", "steps", "batch_size", "val_every", "patience", "devices_at_once"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise ValueError(f"{name} must be a positive integer, got {value!r}")
        if self.toward not in (None, "start", "mean") or (self.toward is None) != (self.pull == 0) or self.pull < 0:
            raise ValueError(
                f"toward must be 'start' or 'mean' with a positive pull, or neither; got toward={self.toward!r} and "
                f"pull={self.pull!r}"
            )
        wrong = {id: factor for id, factor in self.lr_scale.items() if not factor >= 0}
        if wrong:
            raise ValueError(f"lr_scale must not be negative, got {wrong}")

    def optimiser(self) -> AdamW:
        """The optimiser's settings."""
        return AdamW(self.lr, self.betas, self.eps, self.weight_decay)

    def as_json(self) -> dict[str, Any]:
        """What decides the outcome, for a checkpoint."""
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        values |= {"lr_scale": dict(self.lr_scale), "betas": list(self.betas)}
        values["loss"] = self.loss if isinstance(self.loss, str) else getattr(self.loss, "__qualname__", "a function")
        return {k: v for k, v in values.items() if k not in _NOT_THE_OUTCOME}


def train(
    fleet: Fleet, data: Mapping[str, Samples], val: Mapping[str, Samples], settings: Settings, out: Path | None
) -> History:
    """`Fleet.fit`; see there."""
    unknown = [f"{what}: {id}" for what, given in (("data", data), ("val", val)) for id in given if id not in fleet.ids]
    unknown += [f"val, but not in data: {id}" for id in val if id in fleet.ids and id not in data]
    unknown += [f"lr_scale: {id}" for id in settings.lr_scale if id not in data]
    if unknown or not data:
        raise ValueError(f"devices that are not to be trained: {', '.join(unknown[:20]) or 'none in data at all'}")
    run = Run(fleet, data, val, settings)
    if out is not None:
        checkpoint.resume(run, out)
    run.start()
    total, done = sum(run.total), sum(device.steps for device in run.history.values())
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns) if settings.progress else nullcontext() as bar:
        task = None if bar is None else bar.add_task("", total=total, completed=done)
        saved = checkpoint.Clock(settings.save_every_s)
        try:
            while run.active:
                run.step()
                if settings.watch is not None:
                    settings.watch(run.history)
                if bar is not None and task is not None:
                    what = f"{len(run.active)} of {len(run.ids)} devices"
                    bar.update(task, completed=run.steps_gone(), description=what)
                if out is not None and (saved.due() or not run.active):
                    checkpoint.save(run, out)
        finally:
            run.hand_back()
    return History(run.history)


class Run:
    """One training: the devices of ``data``, by their number in ``ids``, and what each has come to."""

    def __init__(
        self, fleet: Fleet, data: Mapping[str, Samples], val: Mapping[str, Samples], settings: Settings
    ) -> None:
        self.fleet, self.settings, self.adamw = fleet, settings, settings.optimiser()
        self.ids = [id for id in fleet.ids if id in data]
        self.rows = fleet._rows(self.ids)
        self.table = Table.of(data, self.ids, "data")
        self.checked = [i for i, id in enumerate(self.ids) if id in val]
        self.val_table = Table.of(val, [self.ids[i] for i in self.checked], "val") if val else None
        self.batches = [-(-count // settings.batch_size) for count in self.table.count]
        self.total = [settings.steps or (settings.epochs or 0) * each for each in self.batches]
        self.values = fleet.values[self.rows].clone()
        self.first, self.second = torch.zeros_like(self.values), torch.zeros_like(self.values)
        self.best = self.values.clone() if val else self.values
        self.begin = self.values.clone() if settings.toward == "start" else None
        self.steps = torch.zeros(len(self.ids), 1, dtype=torch.float64, device=self.values.device)
        scale = [settings.lr * settings.lr_scale.get(id, 1.0) for id in self.ids]
        self.lr = torch.tensor(scale, dtype=torch.float64, device=self.values.device)[:, None]
        self.history = {id: DeviceHistory() for id in self.ids}
        self.waiting = [0] * len(self.ids)
        self.active = list(range(len(self.ids)))
        self._orders: dict[int, list[torch.Tensor]] = {}

    def start(self) -> None:
        """Validate what has not been trained yet: whoever finds nothing better keeps its start."""
        _keep_memory_between_steps()
        self.active = [i for i in self.active if self.history[self.ids[i]].status == "training"]
        self._validate([i for i in self.active if not self.history[self.ids[i]].validation])

    def step(self) -> None:
        """One step of every active device."""
        anchor = self.values[self._sound()].mean(0) if self.settings.toward == "mean" else None
        by_size: dict[int, tuple[list[int], list[torch.Tensor]]] = {}
        for i in self.active:
            batch = self._next_batch(i)
            devices, batches = by_size.setdefault(len(batch), ([], []))
            devices.append(i)
            batches.append(batch)
        for size, (devices, batches) in by_size.items():
            for some in self._chunks(len(devices), size):
                self._step_of(devices[some], torch.cat(batches[some]), anchor)
        self._after_step()

    def steps_gone(self) -> int:
        """Those taken, and those that devices which stopped will not take."""
        gone = (
            device.steps if device.status == "training" else total
            for device, total in zip(self.history.values(), self.total, strict=True)
        )
        return sum(gone)

    def hand_back(self) -> None:
        """Put the rows back into the fleet; of a device that is not done, as they are now."""
        self.fleet.values[self.rows] = self.values

    def _sound(self) -> list[int]:
        return [i for i, id in enumerate(self.ids) if not self.history[id].diverged]

    def _next_batch(self, i: int) -> torch.Tensor:
        """Rows of the table."""
        epoch, place = divmod(self.history[self.ids[i]].steps, self.batches[i])
        if place == 0 or i not in self._orders:
            m, size, s = self.table.count[i], self.settings.batch_size, self.settings
            order = batch_order(m, size, id=self.ids[i], seed=s.seed, epoch=epoch)
            self._orders[i] = [batch.add_(self.table.start[i]) for batch in order]
        return self._orders[i][place]

    def _chunks(self, devices: int, samples: int) -> list[slice]:
        at_once = self.settings.devices_at_once or self.fleet.devices_at_once(self.table.x, samples)
        pieces = -(-devices // at_once)
        bounds = [devices * piece // pieces for piece in range(pieces + 1)]
        return [slice(a, b) for a, b in pairwise(bounds)]

    def _step_of(self, devices: list[int], batch: torch.Tensor, anchor: torch.Tensor | None) -> None:
        here = _index(devices)
        values = self.values[here].detach().requires_grad_(True)
        x, y = self.table.take(batch, values.device)
        losses = self._losses(self.fleet._run(values, x), y, len(devices))
        (gradient,) = torch.autograd.grad(losses.sum(), values)
        pulled_to = anchor if self.begin is None else self.begin[here]
        if pulled_to is not None:
            gradient = gradient.add(values.detach() - pulled_to, alpha=2 * self.settings.pull)
        sound = losses.detach().isfinite() & gradient.sum(1).isfinite()
        numbers = torch.stack([losses.detach().double(), sound.double()]).tolist()
        for i, loss, is_sound in zip(devices, *numbers, strict=True):
            device = self.history[self.ids[i]]
            device.losses.append(loss)
            device.steps += 1
            if not is_sound:
                what = "gradient" if loss - loss == 0 else "loss"
                device.status = f"diverged: {what} not finite at step {device.steps}"
        if not all(numbers[1]):
            devices = [i for i, is_sound in zip(devices, numbers[1], strict=True) if is_sound]
            here, gradient = _index(devices), gradient[sound]
        self._update(here, gradient)

    def _update(self, here: slice | list[int], gradient: torch.Tensor) -> None:
        self.steps[here] += 1
        state = self.values[here], gradient, self.first[here], self.second[here]
        self.adamw.step(*state, self.steps[here], self.lr[here])
        if not isinstance(here, slice):  # those were copies
            self.values[here], self.first[here], self.second[here] = state[0], state[2], state[3]

    def _losses(self, outputs: torch.Tensor, targets: torch.Tensor, n: int) -> torch.Tensor:
        """(n,) of outputs and targets (n·m, …).

        Raises:
            ValueError: their shapes differ, for a loss that would broadcast them.
        """
        loss = self.settings.loss
        if not isinstance(loss, str):
            return torch.func.vmap(loss)(outputs.unflatten(0, (n, -1)), targets.unflatten(0, (n, -1)))
        if outputs.shape != targets.shape:
            raise ValueError(f"outputs {tuple(outputs.shape)} and targets {tuple(targets.shape)} differ in shape")
        return LOSSES[loss](outputs, targets, reduction="none").view(n, -1).mean(1)  # type: ignore[call-arg]

    def _after_step(self) -> None:
        to_check, checked = [], set(self.checked)
        for i in self.active:
            device = self.history[self.ids[i]]
            every = self.settings.val_every or self.batches[i]
            last = device.steps == self.total[i]
            if device.status == "training" and i in checked and (last or device.steps % every == 0):
                to_check.append(i)
        self._validate(to_check)
        for i in self.active:
            device = self.history[self.ids[i]]
            if device.status == "training" and device.steps == self.total[i]:
                device.status = "finished"
        done = [i for i in self.active if self.history[self.ids[i]].status != "training"]
        if done:
            back = [i for i in done if self.history[self.ids[i]].validation]
            self.values[back] = self.best[back]
            self.active = [i for i in self.active if self.history[self.ids[i]].status == "training"]

    def _validate(self, devices: Sequence[int]) -> None:
        """Take note of the validation loss, of the best weights, and of who has waited long enough."""
        place = {i: k for k, i in enumerate(self.checked)}
        by_size: dict[int, list[int]] = {}
        for i in devices:
            if i in place and self.val_table is not None:
                by_size.setdefault(self.val_table.count[place[i]], []).append(i)
        for size, those in by_size.items():
            for some in self._chunks(len(those), min(size, self.settings.batch_size)):
                part = those[some]
                self._note(part, self._val_losses(part, [place[i] for i in part], size))

    @torch.no_grad()
    def _val_losses(self, devices: list[int], places: list[int], size: int) -> list[float]:
        table = self.val_table
        assert table is not None, "only devices with validation data come here"
        values, total = self.values[devices], torch.zeros(len(devices), dtype=torch.float64, device=self.values.device)
        for begin in range(0, size, self.settings.batch_size):
            end = min(size, begin + self.settings.batch_size)
            batch = torch.cat([torch.arange(table.start[k] + begin, table.start[k] + end) for k in places])
            x, y = table.take(batch, values.device)
            total += self._losses(self.fleet._run(values, x), y, len(devices)).double() * (end - begin) / size
        return total.tolist()

    def _note(self, devices: list[int], losses: list[float]) -> None:
        better = []
        for i, loss in zip(devices, losses, strict=True):
            device, first = self.history[self.ids[i]], not self.history[self.ids[i]].validation
            device.validation.append((device.steps, loss))
            if first or loss < device.best_loss:
                device.best_loss, device.best_step, self.waiting[i] = loss, device.steps, 0
                better.append(i)
                continue
            self.waiting[i] += 1
            if self.settings.patience is not None and self.waiting[i] >= self.settings.patience:
                device.status = "stopped early"
        self.best[better] = self.values[better]


def _keep_memory_between_steps() -> None:
    """glibc returns what a step has freed to the system, and the next one faults it in again, page by page: up to a
    third of a step on CPU. Having freed one block of nearly 32 MiB, it keeps twice that from then on. Elsewhere this
    does nothing.
    """
    torch.empty(31 << 20, dtype=torch.uint8)


def _index(devices: list[int]) -> slice | list[int]:
    """A slice where the numbers follow each other: a view then, not a copy."""
    if devices and devices[-1] - devices[0] == len(devices) - 1:  # they are in order
        return slice(devices[0], devices[-1] + 1)
    return devices
