"""The server's Trainer, and everything a round needs to be trusted."""

from lightning_fl_ext.server.app import server_app
from lightning_fl_ext.server.callbacks import (
    RoundCallback,
    RoundCheckpoint,
    RoundEarlyStopping,
    RoundLedger,
    RoundProgressBar,
)
from lightning_fl_ext.server.callbacks.base import CallbackError
from lightning_fl_ext.server.checkpointing import CheckpointError
from lightning_fl_ext.server.fedpm import FedPM
from lightning_fl_ext.server.ledger import LedgerError, LedgerReport, replay_ledger, verify_ledger
from lightning_fl_ext.server.rejection import BadUpdateError, Reason, Rejection
from lightning_fl_ext.server.result import FederatedResult, RoundRecord
from lightning_fl_ext.server.strategy import ExactFedAvg
from lightning_fl_ext.server.trainer import FederatedTrainer

__all__ = [
    "BadUpdateError",
    "CallbackError",
    "CheckpointError",
    "ExactFedAvg",
    "FedPM",
    "FederatedResult",
    "FederatedTrainer",
    "LedgerError",
    "LedgerReport",
    "Reason",
    "Rejection",
    "RoundCallback",
    "RoundCheckpoint",
    "RoundEarlyStopping",
    "RoundLedger",
    "RoundProgressBar",
    "RoundRecord",
    "replay_ledger",
    "server_app",
    "verify_ledger",
]
