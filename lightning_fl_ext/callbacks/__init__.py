"""Lightning callbacks for stochastic gates."""

from lightning_fl_ext.callbacks.gate_monitor import GateMonitor

__all__ = ["GateMonitor"]
