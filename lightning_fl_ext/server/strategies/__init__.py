"""The package's own aggregation rules, as Flower strategies."""

from lightning_fl_ext.server.strategies.exact_fedavg import ExactFedAvg
from lightning_fl_ext.server.strategies.exact_fedopt import ExactFedOpt
from lightning_fl_ext.server.strategies.fedpm import FedPM
from lightning_fl_ext.server.strategies.robust_fedavg import RobustFedAvg
from lightning_fl_ext.server.strategies.secure_fedavg import SecureFedAvg
from lightning_fl_ext.server.strategies.server_optimizers import (
    ExactFedAdagrad,
    ExactFedAdam,
    ExactFedAvgM,
    ExactFedYogi,
)

__all__ = [
    "ExactFedAdagrad",
    "ExactFedAdam",
    "ExactFedAvg",
    "ExactFedAvgM",
    "ExactFedOpt",
    "ExactFedYogi",
    "FedPM",
    "RobustFedAvg",
    "SecureFedAvg",
]
