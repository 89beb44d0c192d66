"""Lightning callbacks for stochastic gates."""

from lightning_fl_ext.callbacks.gate_monitor import GateMonitor
from lightning_fl_ext.callbacks.gate_schedule import GateSchedule
from lightning_fl_ext.callbacks.gate_target import GateTarget

__all__ = ["GateMonitor", "GateSchedule", "GateTarget"]
