"""The server's Trainer, and everything a round needs to be trusted.

Names are imported when first used: reading a ledger needs neither torch nor Flower.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_fl_ext.lazy import import_lazily

if TYPE_CHECKING:
    from lightning_fl_ext.server.app import server_app as server_app
    from lightning_fl_ext.server.callbacks import RoundCallback as RoundCallback
    from lightning_fl_ext.server.callbacks import RoundCheckpoint as RoundCheckpoint
    from lightning_fl_ext.server.callbacks import RoundEarlyStopping as RoundEarlyStopping
    from lightning_fl_ext.server.callbacks import RoundLedger as RoundLedger
    from lightning_fl_ext.server.callbacks import RoundProgressBar as RoundProgressBar
    from lightning_fl_ext.server.callbacks.base import CallbackError as CallbackError
    from lightning_fl_ext.server.checkpointing import CheckpointError as CheckpointError
    from lightning_fl_ext.server.fedpm import FedPM as FedPM
    from lightning_fl_ext.server.ledger import LedgerError as LedgerError
    from lightning_fl_ext.server.ledger import LedgerReport as LedgerReport
    from lightning_fl_ext.server.ledger import ReplayError as ReplayError
    from lightning_fl_ext.server.ledger import replay_ledger as replay_ledger
    from lightning_fl_ext.server.ledger import verify_ledger as verify_ledger
    from lightning_fl_ext.server.rejection import BadUpdateError as BadUpdateError
    from lightning_fl_ext.server.rejection import Reason as Reason
    from lightning_fl_ext.server.rejection import Rejection as Rejection
    from lightning_fl_ext.server.result import FederatedResult as FederatedResult
    from lightning_fl_ext.server.result import RoundRecord as RoundRecord
    from lightning_fl_ext.server.strategy import ExactFedAvg as ExactFedAvg
    from lightning_fl_ext.server.trainer import FederatedTrainer as FederatedTrainer

_HOME = {
    "BadUpdateError": "rejection",
    "CallbackError": "callbacks.base",
    "CheckpointError": "checkpointing",
    "ExactFedAvg": "strategy",
    "FedPM": "fedpm",
    "FederatedResult": "result",
    "FederatedTrainer": "trainer",
    "LedgerError": "ledger",
    "LedgerReport": "ledger",
    "Reason": "rejection",
    "Rejection": "rejection",
    "ReplayError": "ledger",
    "RoundCallback": "callbacks",
    "RoundCheckpoint": "callbacks",
    "RoundEarlyStopping": "callbacks",
    "RoundLedger": "callbacks",
    "RoundProgressBar": "callbacks",
    "RoundRecord": "result",
    "replay_ledger": "ledger",
    "server_app": "app",
    "verify_ledger": "ledger",
}

__all__ = sorted(_HOME)

__getattr__ = import_lazily(__name__, _HOME)


def __dir__() -> list[str]:
    return __all__
