"""Stochastic gates for PyTorch Lightning, and a bridge from any Lightning Trainer to Flower.

Names are imported when first used, so ``import lightning_fl_ext`` costs milliseconds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_fl_ext.errors import LightningFLError
from lightning_fl_ext.lazy import import_lazily

if TYPE_CHECKING:
    from lightning_fl_ext.aggregation import CentredClipping as CentredClipping
    from lightning_fl_ext.aggregation import CoordinateMedian as CoordinateMedian
    from lightning_fl_ext.aggregation import ExactMean as ExactMean
    from lightning_fl_ext.aggregation import GeometricMedian as GeometricMedian
    from lightning_fl_ext.aggregation import KrumSelection as KrumSelection
    from lightning_fl_ext.aggregation import TrimmedMean as TrimmedMean
    from lightning_fl_ext.aggregation import exact_mean as exact_mean
    from lightning_fl_ext.callbacks import GateMonitor as GateMonitor
    from lightning_fl_ext.callbacks import GateSchedule as GateSchedule
    from lightning_fl_ext.callbacks import GateTarget as GateTarget
    from lightning_fl_ext.client import ClientAlgorithm as ClientAlgorithm
    from lightning_fl_ext.client import ClientRound as ClientRound
    from lightning_fl_ext.client import FlowerBridge as FlowerBridge
    from lightning_fl_ext.client import LocalFit as LocalFit
    from lightning_fl_ext.client import SecureAggregation as SecureAggregation
    from lightning_fl_ext.client import client_app as client_app
    from lightning_fl_ext.client import refuse_plain as refuse_plain
    from lightning_fl_ext.engines import LocalGrid as LocalGrid
    from lightning_fl_ext.engines import run_local as run_local
    from lightning_fl_ext.gates import BernoulliSample as BernoulliSample
    from lightning_fl_ext.gates import MaskedModule as MaskedModule
    from lightning_fl_ext.gates import StochasticGateModule as StochasticGateModule
    from lightning_fl_ext.gates import bernoulli_sample as bernoulli_sample
    from lightning_fl_ext.gates import gate_costs as gate_costs
    from lightning_fl_ext.gates import gate_modules as gate_modules
    from lightning_fl_ext.gates import shrink as shrink
    from lightning_fl_ext.metrics import merge_metrics as merge_metrics
    from lightning_fl_ext.metrics import pack_metrics as pack_metrics
    from lightning_fl_ext.partition import dirichlet_split as dirichlet_split
    from lightning_fl_ext.results import ClientUpdate as ClientUpdate
    from lightning_fl_ext.results import EpochResult as EpochResult
    from lightning_fl_ext.results import decode_and_pseudo_sort_results as decode_and_pseudo_sort_results
    from lightning_fl_ext.results import digest as digest
    from lightning_fl_ext.results import order_results as order_results
    from lightning_fl_ext.results import pseudo_sort_scoring_function as pseudo_sort_scoring_function
    from lightning_fl_ext.results import select_zeroeth_element as select_zeroeth_element
    from lightning_fl_ext.secure import write_site_keys as write_site_keys
    from lightning_fl_ext.server import AlgorithmStrategy as AlgorithmStrategy
    from lightning_fl_ext.server import Ditto as Ditto
    from lightning_fl_ext.server import ExactFedAdagrad as ExactFedAdagrad
    from lightning_fl_ext.server import ExactFedAdam as ExactFedAdam
    from lightning_fl_ext.server import ExactFedAvg as ExactFedAvg
    from lightning_fl_ext.server import ExactFedAvgM as ExactFedAvgM
    from lightning_fl_ext.server import ExactFedYogi as ExactFedYogi
    from lightning_fl_ext.server import FedDyn as FedDyn
    from lightning_fl_ext.server import FederatedTrainer as FederatedTrainer
    from lightning_fl_ext.server import FedNova as FedNova
    from lightning_fl_ext.server import FedPM as FedPM
    from lightning_fl_ext.server import FedProx as FedProx
    from lightning_fl_ext.server import FedRep as FedRep
    from lightning_fl_ext.server import Limits as Limits
    from lightning_fl_ext.server import RobustFedAvg as RobustFedAvg
    from lightning_fl_ext.server import RoundCallback as RoundCallback
    from lightning_fl_ext.server import RoundCheckpoint as RoundCheckpoint
    from lightning_fl_ext.server import RoundEarlyStopping as RoundEarlyStopping
    from lightning_fl_ext.server import RoundLedger as RoundLedger
    from lightning_fl_ext.server import RoundProgressBar as RoundProgressBar
    from lightning_fl_ext.server import Scaffold as Scaffold
    from lightning_fl_ext.server import SecureFedAvg as SecureFedAvg
    from lightning_fl_ext.server import export_model as export_model
    from lightning_fl_ext.server import replay_ledger as replay_ledger
    from lightning_fl_ext.server import restore_model as restore_model
    from lightning_fl_ext.server import server_app as server_app
    from lightning_fl_ext.server import verify_ledger as verify_ledger
    from lightning_fl_ext.wire import MaskExchange as MaskExchange
    from lightning_fl_ext.wire import WeightExchange as WeightExchange

__version__ = "0.1.0"

_HOME = {
    "ExactMean": "aggregation",
    "CentredClipping": "aggregation",
    "CoordinateMedian": "aggregation",
    "GeometricMedian": "aggregation",
    "KrumSelection": "aggregation",
    "TrimmedMean": "aggregation",
    "exact_mean": "aggregation",
    "GateMonitor": "callbacks",
    "GateSchedule": "callbacks",
    "GateTarget": "callbacks",
    "ClientAlgorithm": "client",
    "ClientRound": "client",
    "LocalFit": "client",
    "FlowerBridge": "client",
    "client_app": "client",
    "LocalGrid": "engines",
    "run_local": "engines",
    "BernoulliSample": "gates",
    "StochasticGateModule": "gates",
    "bernoulli_sample": "gates",
    "gate_costs": "gates",
    "gate_modules": "gates",
    "shrink": "gates",
    "dirichlet_split": "partition",
    "ClientUpdate": "results",
    "EpochResult": "results",
    "decode_and_pseudo_sort_results": "results",
    "digest": "results",
    "order_results": "results",
    "pseudo_sort_scoring_function": "results",
    "select_zeroeth_element": "results",
    "WeightExchange": "wire",
    "AlgorithmStrategy": "server",
    "FedDyn": "server",
    "FedNova": "server",
    "FedPM": "server",
    "FedProx": "server",
    "Ditto": "server",
    "FedRep": "server",
    "Scaffold": "server",
    "MaskExchange": "wire",
    "MaskedModule": "gates",
    "FederatedTrainer": "server",
    "server_app": "server",
    "ExactFedAvg": "server",
    "ExactFedAdagrad": "server",
    "ExactFedAdam": "server",
    "ExactFedAvgM": "server",
    "ExactFedYogi": "server",
    "RobustFedAvg": "server",
    "Limits": "server",
    "RoundCallback": "server",
    "RoundCheckpoint": "server",
    "RoundEarlyStopping": "server",
    "RoundLedger": "server",
    "RoundProgressBar": "server",
    "SecureFedAvg": "server",
    "SecureAggregation": "client",
    "refuse_plain": "client",
    "write_site_keys": "secure",
    "verify_ledger": "server",
    "replay_ledger": "server",
    "export_model": "server",
    "restore_model": "server",
    "pack_metrics": "metrics",
    "merge_metrics": "metrics",
}

__all__ = ["LightningFLError", "__version__", *_HOME]

__getattr__ = import_lazily(__name__, _HOME)


def __dir__() -> list[str]:
    return sorted(__all__)
