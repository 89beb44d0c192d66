"""From screened updates to one model: pure functions of numpy arrays, without Flower, Lightning or torch."""

from lightning_fl_ext.aggregation.errors import AggregationOverflow, InvalidUpdate
from lightning_fl_ext.aggregation.exact import ExactMean, exact_mean
from lightning_fl_ext.aggregation.robust import (
    CentredClipping,
    CoordinateMedian,
    GeometricMedian,
    KrumSelection,
    RobustRule,
    TrimmedMean,
)

__all__ = [
    "AggregationOverflow",
    "CentredClipping",
    "CoordinateMedian",
    "ExactMean",
    "GeometricMedian",
    "InvalidUpdate",
    "KrumSelection",
    "RobustRule",
    "TrimmedMean",
    "exact_mean",
]
