"""Lightning on one side, Flower on the other."""

from lightning_fl_ext.client.algorithms.base import ClientAlgorithm, LocalFit
from lightning_fl_ext.client.app import client_app
from lightning_fl_ext.client.bridge.bridge import FlowerBridge
from lightning_fl_ext.client.round import ClientRound
from lightning_fl_ext.client.secure import SecureAggregation, refuse_plain

__all__ = [
    "ClientAlgorithm",
    "ClientRound",
    "FlowerBridge",
    "LocalFit",
    "SecureAggregation",
    "client_app",
    "refuse_plain",
]
