"""W' at inference, kept until a tensor that it came from changes: an unmerged adapter then costs what the base costs.

A change is seen by autograd's version counter, and on CPU also where a write goes behind it (``p.data.copy_(…)``, as
hot-swapping and averages of weights do): a dot product with fixed random numbers over the whole of each factor, and
over a sample of the base. On an accelerator such a look would wait for the device, longer than W' takes; there nothing
is kept.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode

_SAMPLE = 4096
"""Elements of a base weight that are looked at."""

_probes: dict[tuple[int, torch.dtype], torch.Tensor] = {}


class WeightCache:
    """One weight and what it was made of. Copies and pickles of it are empty."""

    def __init__(self) -> None:
        self._entry: tuple[Hashable, torch.Tensor, int] | None = None

    def get(
        self,
        factors: Sequence[torch.Tensor],
        base: Sequence[torch.Tensor],
        settings: Hashable,
        make: Callable[[], torch.Tensor],
    ) -> torch.Tensor:
        """The kept weight, or a new one from ``make``.

        Args:
            factors, base: the tensors that the weight is a function of; none of them under a gradient.
            settings: whatever else it is a function of.
            make: gives the weight.
        """
        if not keepable([*factors, *base]):
            return make()
        key = (settings, tuple(_look(t, t.numel()) for t in factors), tuple(_look(t, _SAMPLE) for t in base))
        if self._entry is not None and self._entry[0] == key and self._entry[1]._version == self._entry[2]:
            return self._entry[1]
        with torch.inference_mode(False), torch.no_grad():  # else nobody could train through it later
            weight = make()
        if type(weight) is torch.Tensor:
            self._entry = (key, weight, weight._version)
        return weight

    def clear(self) -> None:
        """Give the memory back."""
        self._entry = None

    def __deepcopy__(self, memo: Any) -> "WeightCache":
        return WeightCache()

    def __reduce__(self) -> Any:
        return WeightCache, ()


def keepable(sources: Sequence[torch.Tensor]) -> bool:
    """Plain CPU tensors that no gradient flows to, outside of anything that records operations."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or _get_current_dispatch_mode() is not None:
        return False
    recorded = torch.is_grad_enabled()
    return all(
        type(t) in (torch.Tensor, torch.nn.Parameter)
        and t.device.type == "cpu"
        and not (recorded and t.requires_grad)
        and not torch._C._functorch.is_functorch_wrapped_tensor(t)
        and not t.is_inference()
        for t in sources
    )


def _look(tensor: torch.Tensor, elements: int) -> Hashable:
    """What is compared of a tensor: where it lies, its version, and a random projection of that many elements."""
    flat = tensor.detach().reshape(-1)
    flat = flat[:: max(1, -(-flat.numel() // max(1, elements)))]
    return tensor.data_ptr(), tensor._version, tensor.shape, tensor.dtype, torch.dot(flat, _probe(flat)).item()


def _probe(flat: torch.Tensor) -> torch.Tensor:
    key = (flat.numel(), flat.dtype)
    if key not in _probes:
        numbers = torch.randn(flat.numel(), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        _probes[key] = numbers.to(flat.dtype)
    return _probes[key]
