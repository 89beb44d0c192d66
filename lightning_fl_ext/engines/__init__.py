"""What carries the messages."""

from lightning_fl_ext.engines.local import LocalGrid, run_local

__all__ = ["LocalGrid", "run_local"]
