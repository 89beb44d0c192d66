"""Lightning on one side, Flower on the other."""

from lightning_fl_ext.client.app import client_app
from lightning_fl_ext.client.bridge.bridge import FlowerBridge

__all__ = ["FlowerBridge", "client_app"]
