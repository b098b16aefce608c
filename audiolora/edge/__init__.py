"""The device's side: one frozen base in ONNX Runtime, adapters that are verified, swapped in a call and let go again.

    from audiolora.edge import Session
    session = Session("pumps", key="pumps.pub.pem")
    session.load("pump7")
    y = session.run(x, adapter="pump7")

No torch. Needs the extra: ``pip install "audiolora[edge]"`` (on a device: onnxruntime, numpy, cryptography, and this
package with ``--no-deps``).
"""

from audiolora.edge.network import Network
from audiolora.edge.session import Session
from audiolora.edge.streaming import Stream
from audiolora.edge.wav import read_wav
from audiolora.export.errors import BundleError

__all__ = ["BundleError", "Network", "Session", "Stream", "read_wav"]
