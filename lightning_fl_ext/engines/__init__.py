"""What carries the messages."""

from lightning_fl_ext.engines.local import LocalGrid, run_local
from lightning_fl_ext.engines.ordered import NotEnoughClientsError, OrderedGrid
from lightning_fl_ext.engines.streaming import stream_replies

__all__ = ["LocalGrid", "NotEnoughClientsError", "OrderedGrid", "run_local", "stream_replies"]
