"""Robust rules: models made of updates of which some may be anything at all."""

from lightning_fl_ext.aggregation.robust.by_coordinate import CoordinateMedian, TrimmedMean
from lightning_fl_ext.aggregation.robust.by_distance import CentredClipping, GeometricMedian, KrumSelection
from lightning_fl_ext.aggregation.robust.rule import RobustRule

__all__ = [
    "CentredClipping",
    "CoordinateMedian",
    "GeometricMedian",
    "KrumSelection",
    "RobustRule",
    "TrimmedMean",
]
