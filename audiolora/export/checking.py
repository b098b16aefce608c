"""Parity: what the device's own session gives on the bundle's files is what torch gives, or there is no bundle."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from audiolora.edge.network import Network, difference
from audiolora.edge.session import Session
from audiolora.export.bundle import read_base
from audiolora.export.parts import Part
from audiolora.export.prepared import Prepared
from audiolora.export.streaming import StreamPlan
from audiolora.export.streaming_parts import stream_difference


def check_parity(
    bundle: Path,
    work: Prepared,
    ids: Mapping[str, str],
    *,
    folders: Mapping[str, Path] | None = None,
) -> dict[str, float]:
    """The largest difference of the base and of each adapter, swapped and bound, over all graphs and trials.

    Args:
        bundle: just written; its signature is not looked at.
        work: what torch gives, and what to try.
        ids: bundle's id → PEFT's name of an adapter.
        folders: where an adapter lies, if not in the bundle.

    Raises:
        ValueError: a difference above the manifest's tolerance; all of them are named.
    """
    # ExecuTorch's threads are the process's.
    threads = 1 if read_base(bundle, check_signature=False).manifest.target == "onnx" else 0
    session = Session(bundle, check_signature=False, threads=threads)
    for each in ids:
        session.load(each, (folders or {}).get(each))
    found: dict[str, float] = {}
    both: list[tuple[str | None, str | None]] = [(None, work.merged), *ids.items()]
    for name, adapter in both:
        ways, off = (session.network(name), session.bind(name)), 0.0
        for part in work.parts:
            for inputs in work.trials(part):
                wanted = work.reference(part, inputs, adapter)
                off = max(off, *(_worst(_outputs(way, part, inputs), wanted) for way in ways))
            if isinstance(part.view, StreamPlan):
                streams = [session.stream(name), ways[1].stream()]
                off = max(off, stream_difference(streams, part, work.reference, adapter))
        key = name or "base"
        found[key] = max(off, found.get(key, 0.0))  # an adapter may be called base
    allowed = session.manifest.tolerance
    wrong = {name: off for name, off in found.items() if not off <= allowed}
    if wrong:
        listed = ", ".join(f"{name} by {off:.1e}" for name, off in wrong.items())
        raise ValueError(
            f"the exported graph is off torch's outputs: {listed}, and {allowed:.0e} is allowed; nothing is written. "
            "Is the network over the base of this bundle, and does it give the same at each call (no random numbers)?"
        )
    for tested, _ in both:
        session.selftest(tested)
    return found


def _outputs(network: Network, part: Part, inputs: Mapping[str, torch.Tensor]) -> tuple[np.ndarray, ...]:
    """In the order of the part's view: data, then states."""
    arrays = {name: tensor.numpy() for name, tensor in inputs.items()}
    states = {name: arrays.pop(name) for name in part.states}
    y, after = network.step(arrays, states, part.name)
    return (*(y if isinstance(y, tuple) else (y,)), *after.values())


def _worst(found: tuple[np.ndarray, ...], wanted: tuple[np.ndarray, ...]) -> float:
    if len(found) != len(wanted):
        return float("inf")
    return max(difference(y, right) for y, right in zip(found, wanted, strict=True))
