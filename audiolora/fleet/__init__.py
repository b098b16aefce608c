"""Hundreds of adapters trained at once over one frozen network."""

from audiolora.fleet.batches import batch_order
from audiolora.fleet.fleet import Fleet
from audiolora.fleet.history import DeviceHistory, History

__all__ = ["DeviceHistory", "Fleet", "History", "batch_order"]
