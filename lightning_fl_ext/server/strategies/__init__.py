"""The package's own aggregation rules, as Flower strategies."""

from lightning_fl_ext.server.strategies.drift import FedDyn, FedNova, FedProx, Scaffold
from lightning_fl_ext.server.strategies.exact_fedavg import ExactFedAvg
from lightning_fl_ext.server.strategies.fedpm import FedPM
from lightning_fl_ext.server.strategies.personal import Ditto, FedRep
from lightning_fl_ext.server.strategies.secure_fedavg import SecureFedAvg
from lightning_fl_ext.server.strategies.two_halves import AlgorithmStrategy

__all__ = [
    "AlgorithmStrategy",
    "Ditto",
    "ExactFedAvg",
    "FedDyn",
    "FedNova",
    "FedPM",
    "FedProx",
    "FedRep",
    "Scaffold",
    "SecureFedAvg",
]
