"""One bundle for ExecuTorch with an adapter of every method, exported once: lowering takes its time."""

from __future__ import annotations

import functools
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import torch

from audiolora.export import export
from audiolora.export.exporting import Exported
from audiolora.export.signing import make_keys
from tests.export.networks import adapted, everything, sample

LENGTH = 40


@functools.cache
def keys() -> tuple[Path, Path]:
    """Private, public."""
    return make_keys(Path(mkdtemp()) / "ours")


@functools.cache
def bundle() -> Exported:
    """The batch is free, up to 8."""
    folder = Path(mkdtemp()) / "all"
    return export(adapted(), folder, sample(2, LENGTH), target="executorch", largest={"batch": 8}, key=keys()[0])


def by_torch(x: np.ndarray, method: str | None) -> np.ndarray:
    """The output of the network with this adapter, merged in float64 by PEFT's own call; None: without any."""
    model: torch.nn.Module = everything()
    if method is not None:
        model = adapted()
        model.set_adapter(method)
    with torch.no_grad():
        return model.double().eval()(torch.from_numpy(x).double()).numpy()
