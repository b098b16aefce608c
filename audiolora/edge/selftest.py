"""The self-test that is stored in a bundle, on this machine."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from audiolora.edge.network import Network, difference
from audiolora.export.errors import BundleError
from audiolora.export.manifests import SELFTEST


def tested(network: Network, graph: str, stored: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray]) -> float:
    """How far a graph is off on its stored inputs and states."""
    spec = network.manifest.graphs[graph]
    inputs = {value.name: _stored(stored, f"{graph}.input.{value.name}") for value in spec.inputs}
    states = {state.input: _stored(stored, f"{graph}.input.{state.input}") for state in spec.states}
    y, after = network.step(inputs, states, graph)
    names = [value.name for value in spec.outputs] + [state.output for state in spec.states]
    outputs = [*(y if isinstance(y, tuple) else (y,)), *after.values()]
    return max(
        difference(value, _stored(wanted, f"{graph}.output.{name}")) for name, value in zip(names, outputs, strict=True)
    )


def _stored(tensors: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    if name not in tensors:
        raise BundleError(f"{SELFTEST}: {name} is not in it; export the bundle again")
    return tensors[name]
