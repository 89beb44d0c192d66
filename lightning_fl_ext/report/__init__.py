"""Runs looked at afterwards: read, shown as a page, and compared."""

from lightning_fl_ext.report.differences import ClientDifference, Comparison, compare_runs
from lightning_fl_ext.report.history import Contribution, History, read_history
from lightning_fl_ext.report.overlay import render_runs
from lightning_fl_ext.report.page import render_report
from lightning_fl_ext.report.runs import read_runs
from lightning_fl_ext.report.tensors import TensorDifference, first_difference

__all__ = [
    "ClientDifference",
    "Comparison",
    "Contribution",
    "History",
    "TensorDifference",
    "compare_runs",
    "first_difference",
    "read_history",
    "read_runs",
    "render_report",
    "render_runs",
]
