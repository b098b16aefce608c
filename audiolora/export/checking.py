"""Parity: what the device's own session gives on the bundle's files is what torch gives, or there is no bundle."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from audiolora.edge.session import TOLERANCE, Session, difference
from audiolora.export.slots import inner_network

Arrays = dict[str, np.ndarray]


class Reference:
    """The adapted network itself, run by torch with one adapter or none.

    Args:
        twin: from `slots.copied`, adapters in it; it is copied once more.
    """

    def __init__(self, twin: nn.Module) -> None:
        self.net = inner_network(copy.deepcopy(twin))

    def __call__(self, inputs: Mapping[str, torch.Tensor], adapter: str | None) -> tuple[np.ndarray, ...]:
        """The outputs, as arrays.

        Raises:
            ValueError: the network gives something else than a tensor or a tuple of tensors.
        """
        for module in self.net.modules():
            if isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper)):
                _switch(module, adapter)
        with torch.no_grad():
            found = self.net(*inputs.values())
        outputs = found if isinstance(found, (tuple, list)) else (found,)
        if not all(isinstance(y, torch.Tensor) for y in outputs):
            raise ValueError(
                f"{type(self.net).__name__} gives a {type(found).__name__}, and a graph gives a tensor or a tuple of "
                "tensors; wrap the network in a module that returns them"
            )
        return tuple(y.numpy() for y in outputs)


def _switch(module: BaseTunerLayer | AuxiliaryTrainingWrapper, adapter: str | None) -> None:
    if isinstance(module, BaseTunerLayer):
        on = adapter is not None and adapter in module._get_available_adapters()
    else:
        on = adapter is not None and adapter in module._adapters
    module.enable_adapters(on)
    if on:
        module.set_adapter([adapter] if isinstance(module, BaseTunerLayer) else adapter)


def check_parity(
    bundle: Path,
    reference: Reference,
    ids: Mapping[str, str],
    inputs: list[dict[str, torch.Tensor]],
    *,
    base: str | None = None,
    folders: Mapping[str, Path] | None = None,
) -> dict[str, float]:
    """The largest difference of the base and of each adapter, swapped and bound, over all inputs.

    Args:
        bundle: just written; its signature is not looked at.
        reference: what torch gives.
        ids: bundle's id → PEFT's name of an adapter.
        inputs: examples of different sizes.
        base: the adapter that is merged into the base, if one is.
        folders: where an adapter lies, if not in the bundle.

    Raises:
        ValueError: a difference above `edge.session.TOLERANCE`; all of them are named.
    """
    session = Session(bundle, check_signature=False, threads=1)
    for each in ids:
        session.load(each, (folders or {}).get(each))
    found: dict[str, float] = {}
    both: list[tuple[str | None, str | None]] = [(None, base), *ids.items()]
    for name, adapter in both:
        bound = session.bind(name)
        off = 0.0
        for one in inputs:
            arrays = {key: tensor.numpy() for key, tensor in one.items()}
            wanted = reference(one, adapter)
            for outputs in (session.run(arrays, name), bound.run(arrays)):
                off = max(off, _worst(outputs, wanted))
        key = name or "base"
        found[key] = max(off, found.get(key, 0.0))  # an adapter may be called base
    wrong = {name: off for name, off in found.items() if not off <= TOLERANCE}
    if wrong:
        listed = ", ".join(f"{name} by {off:.1e}" for name, off in wrong.items())
        raise ValueError(
            f"the exported graph is off torch's outputs: {listed}, and {TOLERANCE:.0e} is allowed; nothing is written. "
            "Is the network over the base of this bundle, and does it give the same at each call (no random numbers)?"
        )
    for tested, _ in both:
        session.selftest(tested)
    return found


def _worst(outputs: Any, wanted: tuple[np.ndarray, ...]) -> float:
    found = outputs if isinstance(outputs, tuple) else (outputs,)
    if len(found) != len(wanted):
        return float("inf")
    return max(difference(y, right) for y, right in zip(found, wanted, strict=True))
