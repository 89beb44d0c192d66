"""The package's own aggregation rules, as Flower strategies."""

from lightning_fl_ext.server.strategies.drift import FedDyn, FedNova, FedProx, Scaffold
from lightning_fl_ext.server.strategies.exact_fedavg import ExactFedAvg
from lightning_fl_ext.server.strategies.exact_fedopt import ExactFedOpt
from lightning_fl_ext.server.strategies.fedpm import FedPM
from lightning_fl_ext.server.strategies.personal import Ditto, FedRep
from lightning_fl_ext.server.strategies.robust_fedavg import RobustFedAvg
from lightning_fl_ext.server.strategies.secure_fedavg import SecureFedAvg
from lightning_fl_ext.server.strategies.server_optimizers import (
    ExactFedAdagrad,
    ExactFedAdam,
    ExactFedAvgM,
    ExactFedYogi,
)
from lightning_fl_ext.server.strategies.two_halves import AlgorithmStrategy

__all__ = [
    "AlgorithmStrategy",
    "Ditto",
    "ExactFedAdagrad",
    "ExactFedAdam",
    "ExactFedAvg",
    "ExactFedAvgM",
    "ExactFedOpt",
    "ExactFedYogi",
    "FedDyn",
    "FedNova",
    "FedPM",
    "FedProx",
    "FedRep",
    "RobustFedAvg",
    "Scaffold",
    "SecureFedAvg",
]
