"""From a base's verified files to sessions of its runtime, and what else its task reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from audiolora.edge import executorch
from audiolora.edge.graph import with_constants
from audiolora.edge.runtime import inference_session
from audiolora.edge.whisper import Assets
from audiolora.export.bundle import Base
from audiolora.export.ctc_settings import CtcSettings
from audiolora.export.errors import BundleError
from audiolora.export.manifests import BaseManifest, GraphSpec
from audiolora.export.whisper_settings import DECODER, ENCODER, WhisperSettings


def runtime_sessions(
    base: Base, fixed: Mapping[str, np.ndarray], *, unpack: bool | None = None, **how: Any
) -> dict[str, Any]:
    """The runtime's session of each graph, with these slots as constants; {} for those of an adapter to come.

    Args:
        base: verified.
        fixed: the slots of all graphs.
        unpack: as `Session` has it.
        how: threads and providers.
    """
    if base.manifest.target == "executorch":
        return dict(executorch.programs(base, fixed or no_adapter(base.manifest), how["threads"]))
    speech = isinstance(base.manifest.task, (CtcSettings, WhisperSettings))
    unpacked = base.manifest.quantized == "int8" and (speech if unpack is None else unpack)
    made = {}
    for name, graph in base.manifest.graphs.items():
        file = base.manifest.graph_file(name)
        model = base.files[file]
        model = with_constants(model, of_graph(fixed, graph), file) if fixed else model
        made[name] = inference_session(model, base.manifest.runtime, file=file, unpack=unpacked, **how)
    return made


def read_assets(base: Base) -> Assets | None:
    """What a Whisper's base has besides graphs; None for any other."""
    task, graphs = base.manifest.task, base.manifest.graphs
    if not isinstance(task, WhisperSettings):
        return None
    if missing := {ENCODER, DECODER} - graphs.keys():
        raise BundleError(
            f"base: no graph {' and '.join(sorted(missing))}, and its task is a Whisper's; export it again"
        )
    return Assets.read(base.files, task)


def of_graph(tensors: Mapping[str, np.ndarray], graph: GraphSpec) -> dict[str, np.ndarray]:
    """Of an adapter's tensors those of a graph."""
    return {slot.name: tensors[slot.name] for slot in graph.slots}


def no_adapter(manifest: BaseManifest) -> dict[str, np.ndarray]:
    """The slots of no adapter: zeros of rank 1."""
    sizes = {slot.name: [1 if isinstance(d, str) else d for d in slot.shape] for slot in manifest.slots}
    return {name: np.zeros(shape, np.float32) for name, shape in sizes.items()}
