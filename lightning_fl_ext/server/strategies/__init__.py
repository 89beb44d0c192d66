"""The package's own aggregation rules, as Flower strategies."""

from lightning_fl_ext.server.strategies.exact_fedavg import ExactFedAvg
from lightning_fl_ext.server.strategies.fedpm import FedPM
from lightning_fl_ext.server.strategies.secure_fedavg import SecureFedAvg

__all__ = ["ExactFedAvg", "FedPM", "SecureFedAvg"]
