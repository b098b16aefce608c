"""Each device's samples, and the order in which it sees them: a function of its own data, id and seed alone."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

Samples = tuple[torch.Tensor, torch.Tensor]
"""x (m, …) and y (m, …) of one device."""


def batch_order(samples: int, batch_size: int, *, id: str, seed: int = 0, epoch: int = 0) -> list[torch.Tensor]:
    """The batches of one epoch, as indices into a device's samples; the last one may be smaller.

    Whether a device trains by itself or in a fleet, it sees this order.

    Args:
        samples: m, how many it has.
        batch_size: at most this many a batch.
        id: of the device.
        seed: of the training.
        epoch: from 0.

    Example:
        >>> [len(batch) for batch in batch_order(10, 4, id="meter 7")]
        [4, 4, 2]
    """
    digest = hashlib.blake2b(f"{seed}/{epoch}/{id}".encode(), digest_size=7).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "little"))
    return list(torch.randperm(samples, generator=generator).split(batch_size))


@dataclass(frozen=True)
class Table:
    """The samples of all devices in one tensor, and where each device's begin."""

    x: torch.Tensor
    y: torch.Tensor
    start: list[int]
    count: list[int]

    @staticmethod
    def of(data: Mapping[str, Samples], ids: Sequence[str], what: str) -> "Table":
        """The devices' samples in the order of ``ids``.

        Args:
            data: id → x (m, …) and y (m, …), all of the same shape but for m.
            ids: those wanted.
            what: the argument's name, for errors.

        Raises:
            ValueError: a device has no samples, not as many x as y, or other shapes than the rest.
        """
        wrong: list[str] = []
        shapes: dict[tuple[object, ...], list[str]] = {}
        for id in ids:
            x, y = data[id]
            if len(x) != len(y) or len(x) == 0:
                wrong.append(f"{id}: {len(x)} inputs and {len(y)} targets; it needs as many, and at least one")
            shapes.setdefault((tuple(x.shape[1:]), tuple(y.shape[1:]), x.dtype), []).append(id)
        if len(shapes) > 1:
            most = max(shapes, key=lambda shape: len(shapes[shape]))
            odd = [(shape, id) for shape, those in shapes.items() if shape != most for id in those]
            wrong += [f"{id}: x {s[0]} and y {s[1]} of {s[2]}, the others {most}" for s, id in odd]
        if wrong:
            raise ValueError(f"{what} does not fit:\n  " + "\n  ".join(wrong[:20]))
        count = [len(data[id][0]) for id in ids]
        start = [0, *torch.tensor(count).cumsum(0).tolist()][: len(count)]
        return Table(torch.cat([data[id][0] for id in ids]), torch.cat([data[id][1] for id in ids]), start, count)

    def take(self, rows: torch.Tensor, device: torch.device) -> Samples:
        """The samples at these rows, on ``device``."""
        x, y = self.x.index_select(0, rows.to(self.x.device)), self.y.index_select(0, rows.to(self.y.device))
        return x.to(device, non_blocking=True), y.to(device, non_blocking=True)
