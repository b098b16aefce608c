"""From a trained network to a bundle: one frozen base as an ONNX graph, and adapters of kilobytes that go into it.

    from audiolora.export import export
    export(model, "pumps", example, key="pumps.key.pem")

What a device needs of this package (`bundle`, `manifests`, `tensors`, `signing`) imports no torch. Needs the extra:
``pip install "audiolora[export]"``.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from audiolora.export.bundle import verify
    from audiolora.export.errors import BundleError
    from audiolora.export.exporting import add_adapter, export
    from audiolora.export.signing import make_keys
    from audiolora.export.speech import export_whisper

_HOMES = {
    "BundleError": "audiolora.export.errors",
    "add_adapter": "audiolora.export.exporting",
    "export": "audiolora.export.exporting",
    "export_whisper": "audiolora.export.speech",
    "make_keys": "audiolora.export.signing",
    "verify": "audiolora.export.bundle",
}

__all__ = ["BundleError", "add_adapter", "export", "export_whisper", "make_keys", "verify"]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'audiolora.export' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOMES[name]), name)
