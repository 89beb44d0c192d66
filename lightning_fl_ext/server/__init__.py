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
    from lightning_fl_ext.server.durability.checkpoint import CheckpointError as CheckpointError
    from lightning_fl_ext.server.durability.ledger import LedgerError as LedgerError
    from lightning_fl_ext.server.durability.ledger import LedgerReport as LedgerReport
    from lightning_fl_ext.server.durability.ledger import ReplayError as ReplayError
    from lightning_fl_ext.server.durability.ledger import replay_ledger as replay_ledger
    from lightning_fl_ext.server.durability.ledger import verify_ledger as verify_ledger
    from lightning_fl_ext.server.durability.lightning_checkpoint import ExportError as ExportError
    from lightning_fl_ext.server.durability.signing import KeyFileError as KeyFileError
    from lightning_fl_ext.server.durability.signing import make_keys as make_keys
    from lightning_fl_ext.server.export import export_model as export_model
    from lightning_fl_ext.server.export import restore_model as restore_model
    from lightning_fl_ext.server.record import RoundRecord as RoundRecord
    from lightning_fl_ext.server.record import SiteEvaluation as SiteEvaluation
    from lightning_fl_ext.server.result import FederatedResult as FederatedResult
    from lightning_fl_ext.server.screening.limits import Limits as Limits
    from lightning_fl_ext.server.screening.rejection import BadUpdateError as BadUpdateError
    from lightning_fl_ext.server.screening.rejection import Reason as Reason
    from lightning_fl_ext.server.screening.rejection import Rejection as Rejection
    from lightning_fl_ext.server.strategies import AlgorithmStrategy as AlgorithmStrategy
    from lightning_fl_ext.server.strategies import Ditto as Ditto
    from lightning_fl_ext.server.strategies import ExactFedAdagrad as ExactFedAdagrad
    from lightning_fl_ext.server.strategies import ExactFedAdam as ExactFedAdam
    from lightning_fl_ext.server.strategies import ExactFedAvg as ExactFedAvg
    from lightning_fl_ext.server.strategies import ExactFedAvgM as ExactFedAvgM
    from lightning_fl_ext.server.strategies import ExactFedOpt as ExactFedOpt
    from lightning_fl_ext.server.strategies import ExactFedYogi as ExactFedYogi
    from lightning_fl_ext.server.strategies import FedDyn as FedDyn
    from lightning_fl_ext.server.strategies import FedNova as FedNova
    from lightning_fl_ext.server.strategies import FedPM as FedPM
    from lightning_fl_ext.server.strategies import FedProx as FedProx
    from lightning_fl_ext.server.strategies import FedRep as FedRep
    from lightning_fl_ext.server.strategies import RobustFedAvg as RobustFedAvg
    from lightning_fl_ext.server.strategies import Scaffold as Scaffold
    from lightning_fl_ext.server.strategies import SecureFedAvg as SecureFedAvg
    from lightning_fl_ext.server.trainer import FederatedTrainer as FederatedTrainer

_HOME = {
    "FedRep": "strategies",
    "Ditto": "strategies",
    "Scaffold": "strategies",
    "FedProx": "strategies",
    "FedNova": "strategies",
    "FedDyn": "strategies",
    "AlgorithmStrategy": "strategies",
    "BadUpdateError": "screening.rejection",
    "CallbackError": "callbacks.base",
    "CheckpointError": "durability.checkpoint",
    "ExactFedAvg": "strategies",
    "ExportError": "durability.lightning_checkpoint",
    "ExactFedAdagrad": "strategies",
    "ExactFedAdam": "strategies",
    "ExactFedAvgM": "strategies",
    "ExactFedYogi": "strategies",
    "RobustFedAvg": "strategies",
    "ExactFedOpt": "strategies",
    "FedPM": "strategies",
    "FederatedResult": "result",
    "FederatedTrainer": "trainer",
    "KeyFileError": "durability.signing",
    "LedgerError": "durability.ledger",
    "LedgerReport": "durability.ledger",
    "Limits": "screening.limits",
    "Reason": "screening.rejection",
    "Rejection": "screening.rejection",
    "ReplayError": "durability.ledger",
    "RoundCallback": "callbacks",
    "RoundCheckpoint": "callbacks",
    "RoundEarlyStopping": "callbacks",
    "RoundLedger": "callbacks",
    "RoundProgressBar": "callbacks",
    "RoundRecord": "record",
    "SecureFedAvg": "strategies",
    "SiteEvaluation": "record",
    "export_model": "export",
    "restore_model": "export",
    "make_keys": "durability.signing",
    "replay_ledger": "durability.ledger",
    "server_app": "app",
    "verify_ledger": "durability.ledger",
}

__all__ = sorted(_HOME)

__getattr__ = import_lazily(__name__, _HOME)


def __dir__() -> list[str]:
    return __all__
