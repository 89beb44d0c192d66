"""Callbacks of the `FederatedTrainer`."""

from lightning_fl_ext.server.callbacks.base import RoundCallback
from lightning_fl_ext.server.callbacks.checkpoint import RoundCheckpoint
from lightning_fl_ext.server.callbacks.early_stopping import RoundEarlyStopping
from lightning_fl_ext.server.callbacks.ledger import RoundLedger
from lightning_fl_ext.server.callbacks.progress import RoundProgressBar

__all__ = ["RoundCallback", "RoundCheckpoint", "RoundEarlyStopping", "RoundLedger", "RoundProgressBar"]
