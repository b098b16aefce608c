"""`Fleet`: N adapters over one frozen network, their tensors stacked, each sample through its own device's."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from torch import nn

from audiolora.conv.plan import devices_at_once
from audiolora.conv.stacked import Stack
from audiolora.fleet import storage
from audiolora.fleet.batches import Samples
from audiolora.fleet.history import History
from audiolora.fleet.layout import Layout, read_layout
from audiolora.fleet.training import Settings, train
from audiolora.layers.participation import BypassedModuleWarning
from audiolora.layers.stacked import StackedLayer


class Fleet:
    """An adapter for every device over one frozen network.

    The adapters are PEFT's: LoRA or DoRA on ``nn.Conv1d``, ``nn.ConvTranspose1d`` and ``nn.Linear``, ``lora_bias``,
    ``bias``, rank and alpha patterns, and own copies of the modules in ``modules_to_save``. All devices start alike.
    The network stays frozen and in ``eval`` mode, stays the object that it is, and without `forward` computes what it
    did; `unload` takes the fleet out of it.

    Args:
        net: maps a batch (N, …) to outputs (N, …), each sample by itself.
        config: PEFT's ``LoraConfig``, without dropout.
        ids: the devices' names, each once.
        seed: for the starting values, drawn as PEFT draws them after ``torch.manual_seed(seed)``.

    Raises:
        ValueError: a config that PEFT, audiolora or a fleet refuses, or a name that stands twice.
        TypeError: the network is adapted already, or the config is not a ``LoraConfig``.

    Example:
        >>> import torch
        >>> net = torch.nn.Sequential(torch.nn.Conv1d(1, 8, 3, padding=1), torch.nn.GELU(), torch.nn.Conv1d(8, 1, 1))
        >>> fleet = Fleet(net, LoraConfig(r=1, target_modules=["0"], modules_to_save=["2"]), ids=["north", "south"])
        >>> data = {id: (torch.randn(8, 1, 20), torch.randn(8, 1, 20)) for id in fleet.ids}
        >>> history = fleet.fit(data, steps=3, progress=False)
        >>> fleet(torch.randn(3, 1, 20), ["north", "south", "north"]).shape
        torch.Size([3, 1, 20])
    """

    def __init__(self, net: nn.Module, config: LoraConfig, ids: Sequence[str], *, seed: int = 0) -> None:
        self.net, self.seed = net, seed
        self.layout: Layout = read_layout(net, config, seed)
        parameter = next(net.parameters())
        self.device = parameter.device
        self._trainable = [(p, p.requires_grad) for p in net.parameters()]
        self._training = {module: module.training for module in net.modules()}
        self._layers = _put_in(net, self.layout)
        net.requires_grad_(False).eval()
        self._bytes: dict[tuple[int, ...], int] = {}
        self._index: dict[str, int] = {}
        self.values = self.layout.start.to(self.device)[None][:0].clone()
        self.history = History({})
        self.add(ids)

    @property
    def ids(self) -> list[str]:
        """The devices, in the order of the rows of `tensors`."""
        return list(self._index)

    def __len__(self) -> int:
        return len(self._index)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Every tensor of the adapter file, stacked: key → (N, …), a view of what the fleet computes with."""
        return self._views(self.values)

    def add(self, ids: Sequence[str], start: str = "zero") -> None:
        """Let devices join.

        Args:
            ids: their names, new ones.
            start: ``"zero"`` for the start of every fleet, an adapter that changes nothing yet; ``"mean"`` for the mean
                of the fleet's tensors; or the name of a device to copy.

        Raises:
            ValueError: a name that is in the fleet, or stands twice; an unknown start; the mean of an empty fleet.
        """
        ids = [ids] if isinstance(ids, str) else list(ids)
        twice = [id for id, times in Counter([*ids, *set(ids) & set(self._index)]).items() if times > 1]
        if twice:
            raise ValueError(f"a device may be in a fleet once, and these would be twice: {', '.join(twice[:20])}")
        strange = [id for id in ids if not isinstance(id, str) or id in ("", "zero", "mean")]
        if strange:
            raise ValueError(f"a device's name is a string, not empty, 'zero' or 'mean'; got {strange[0]!r}")
        row = self._starting_row(start)
        self.values = torch.cat([self.values, row.expand(len(ids), -1)])
        self._index.update({id: len(self._index) + i for i, id in enumerate(ids)})

    def _starting_row(self, start: str) -> torch.Tensor:
        if start == "zero":
            return self.layout.start.to(self.device)
        if start in self._index:
            return self.values[self._index[start]]
        if start != "mean":
            raise ValueError(f"start must be 'zero', 'mean' or a device of the fleet, got {start!r}")
        if not self._index:
            raise ValueError("start='mean' needs devices to take the mean of, and the fleet is empty")
        return self.values.mean(0)

    def remove(self, ids: Sequence[str]) -> None:
        """Let devices leave.

        Raises:
            ValueError: a name that is not in the fleet.
        """
        gone = set(self._rows([ids] if isinstance(ids, str) else ids))
        stay = [row for row in range(len(self)) if row not in gone]
        names = self.ids
        self.values = self.values[stay]
        self._index = {names[row]: i for i, row in enumerate(stay)}

    def __call__(self, x: torch.Tensor, ids: str | Sequence[str]) -> torch.Tensor:
        """`forward`."""
        return self.forward(x, ids)

    @torch.no_grad()
    def forward(self, x: torch.Tensor, ids: str | Sequence[str]) -> torch.Tensor:
        """The network's outputs (N, …), each sample by its device's adapter; without a gradient.

        Args:
            x: (N, …), as the network takes it.
            ids: the device of each sample, or of all.

        Raises:
            ValueError: not one name a sample, or one that is not in the fleet.
        """
        rows = self._rows([ids] * len(x) if isinstance(ids, str) else ids)
        if len(rows) != len(x):
            raise ValueError(f"ids must name one device a sample: {len(rows)} names, {len(x)} samples")
        if not rows:
            raise ValueError("the batch has no samples")
        samples: dict[int, list[int]] = {}
        for i, row in enumerate(rows):
            samples.setdefault(row, []).append(i)
        by_count: dict[int, list[int]] = {}
        for row, those in samples.items():
            by_count.setdefault(len(those), []).append(row)
        order, results = [], []
        for count, devices in by_count.items():
            step = self.devices_at_once(x, count)
            for i in range(0, len(devices), step):
                some = devices[i : i + step]
                these = [n for row in some for n in samples[row]]
                order += these
                results.append(self._run(self.values[some], x[these]))
        back = torch.empty(len(order), dtype=torch.long)
        back[torch.tensor(order)] = torch.arange(len(order))
        y = torch.cat(results)
        return y[back.to(y.device)]

    def fit(
        self,
        data: Mapping[str, Samples],
        *,
        val: Mapping[str, Samples] | None = None,
        out: str | os.PathLike[str] | None = None,
        **settings: Any,
    ) -> History:
        """Train every device of ``data`` on its own samples; see `audiolora.fleet.training.Settings` for the rest.

        A device's training is a function of its data, its id and the seed, whoever trains beside it (but for
        ``toward="mean"``). One whose loss or gradient is not finite is stopped, keeps its last sound weights and is
        named in the history; the others go on.

        Args:
            data: device → x (m, …), y (m, …); devices of the fleet that are not in it stay as they are.
            val: the same for validation; a device in it ends with the weights that did best there, the start included.
            out: a folder for checkpoints; a second call with the same arguments goes on from there.
            settings: `Settings`' fields: ``loss``, ``epochs`` or ``steps``, ``batch_size``, ``lr``, ``lr_scale``, …

        Returns:
            The history, which is also ``fleet.history``.

        Raises:
            ValueError: data that do not fit, a setting outside of its range, a checkpoint of another training.
            TypeError: a setting that there is not.
        """
        self.history = train(self, data, val or {}, Settings(**settings), None if out is None else Path(out))
        return self.history

    def adapter(self, id: str) -> dict[str, torch.Tensor]:
        """One device's adapter: what PEFT's ``adapter_model.safetensors`` holds, key → tensor (copies)."""
        (row,) = self._rows([id])
        return {key: value.clone() for key, value in self.layout.unpack(self.values[row]).items()}

    def save_adapter(self, id: str, folder: str | os.PathLike[str]) -> None:
        """Write one device's adapter as PEFT does: ``adapter_config.json`` and ``adapter_model.safetensors``.

        Args:
            id: the device.
            folder: made if need be, and replaced whole.

        Raises:
            ValueError: a name that is not in the fleet.
        """
        storage.save_adapter(self.layout.config, self.adapter(id), Path(folder))

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the whole fleet: ``fleet.safetensors`` (key → (N, …)) and ``fleet.json`` (who is which row, config).

        The folder is replaced whole: a kill leaves the old one or the new one.
        """
        storage.save(self.layout, self.ids, self.tensors(), self.seed, Path(folder))

    @staticmethod
    def load(net: nn.Module, folder: str | os.PathLike[str], ids: Sequence[str] | None = None) -> Fleet:
        """A fleet from `save`'s folder, all of it or some devices (only their rows are read).

        Args:
            net: the network that the fleet was trained over.
            folder: `save`'s.
            ids: those wanted, in this order; None for all.

        Raises:
            ValueError: the file does not fit the network, with every tensor that does not named; unknown devices.
            FileNotFoundError: no fleet in the folder.
        """
        index = storage.read_index(Path(folder))
        fleet = Fleet(net, index.config, index.ids if ids is None else ids, seed=index.seed)
        try:
            fleet.values = storage.read_values(Path(folder), index, fleet.layout, fleet.ids).to(fleet.device)
        except Exception:
            fleet.unload()
            raise
        return fleet

    def unload(self) -> nn.Module:
        """Take the fleet out of the network, which is then as it was before, and return it."""
        for layer in self._layers.values():
            layer.detach_map()
        self._layers = {}
        for parameter, requires_grad in self._trainable:
            parameter.requires_grad_(requires_grad)
        for module, training in self._training.items():
            module.training = training
        return self.net

    def devices_at_once(self, x: torch.Tensor, samples: int) -> int:
        """How many devices with ``samples`` samples like x (N, …) each go through the network together."""
        shape = tuple(x.shape[1:])
        if shape not in self._bytes:
            self._bytes[shape] = self._activation_bytes(x[:1])
        return devices_at_once(self._bytes[shape] * samples, self.device.type)

    @torch.no_grad()
    def _activation_bytes(self, x: torch.Tensor) -> int:
        """Of the largest result of an adapted module, a sample."""
        sizes = [x.numel() * x.element_size()]

        def note(module: nn.Module, args: Any, y: Any) -> None:
            if isinstance(y, torch.Tensor):
                sizes.append(y.numel() * y.element_size())

        hooks = [layer.base_layer.register_forward_hook(note) for layer in self._layers.values()]
        try:
            self._run(self.values[:1], x.to(self.device))
        finally:
            for hook in hooks:
                hook.remove()
        self._warn_of_bypassed()
        return max(sizes)

    def _warn_of_bypassed(self) -> None:
        bypassed = tuple(path for path, layer in self._layers.items() if not layer.now.took_part)
        if bypassed:
            message = (
                f"{', '.join(bypassed[:8])}: adapted, but took no part in a forward, so nothing is learned there; "
            )
            warnings.warn(BypassedModuleWarning(message + "leave them out of the config", bypassed), stacklevel=4)

    def _rows(self, ids: Sequence[str]) -> list[int]:
        unknown = [str(id) for id in dict.fromkeys(ids) if id not in self._index]
        if unknown:
            raise ValueError(f"not in the fleet: {', '.join(unknown[:20])}; add() them first")
        return [self._index[id] for id in ids]

    def _views(self, rows: torch.Tensor) -> dict[str, torch.Tensor]:
        parts = rows.split(self.layout.sizes, dim=1)
        return {s.key: part.view(-1, *s.shape) for s, part in zip(self.layout.slots, parts, strict=True)}

    def _run(self, rows: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """The network on x (n·m, …) by the devices whose rows (n, P) are given, device after device."""
        with self._devices(rows, len(x)):
            y = self.net(x)
        if not isinstance(y, torch.Tensor) or y.shape[:1] != x.shape[:1]:
            what = tuple(y.shape) if isinstance(y, torch.Tensor) else type(y).__name__
            raise ValueError(
                f"a fleet's network maps a batch (N, …) to a tensor (N, …); here {tuple(x.shape)} → {what}"
            )
        return y

    @contextmanager
    def _devices(self, rows: torch.Tensor, batch: int) -> Iterator[None]:
        if self.net.training:  # batch norm would mix devices
            self.net.eval()
        parts = rows.split(self.layout.sizes, dim=1)
        parts = [part.view(-1, *slot.shape) for part, slot in zip(parts, self.layout.slots, strict=True)]
        try:
            for path, roles in self.layout.modules.items():
                layer, scaling = self._layers[path], self.layout.scaling.get(path, 1.0)
                own = {role: parts[i] for role, i in roles.items()}
                now = layer.now
                now.weight, now.bias, now.batch = own.get("weight"), own.get("bias"), batch
                if "A" in own:
                    magnitude = own["magnitude"].flatten(1) if "magnitude" in own else None
                    now.weight = Stack(own["A"], own["B"].flatten(2), scaling, magnitude, layer.transposed_groups)
                if "lora_bias" in own:
                    now.bias, now.bias_scaling = own["lora_bias"], scaling
            yield
        finally:
            for layer in self._layers.values():
                layer.now.weight = layer.now.bias = None


def _put_in(net: nn.Module, layout: Layout) -> dict[str, StackedLayer]:
    layers: dict[str, StackedLayer] = {}
    try:
        for path, roles in layout.modules.items():
            weight = bool(roles.keys() & {"A", "weight"})
            bias = bool(roles.keys() & {"bias", "lora_bias"})
            names = ("weight",) * weight + ("bias",) * bias
            layers[path] = StackedLayer(net.get_submodule(path), path, names)
    except Exception:
        for layer in layers.values():
            layer.detach_map()
        raise
    return layers
