"""From screened updates to one model: pure functions of numpy arrays, without Flower, Lightning or torch."""

from lightning_fl_ext.aggregation.errors import AggregationOverflow, InvalidUpdate
from lightning_fl_ext.aggregation.exact import ExactMean, exact_mean

__all__ = ["AggregationOverflow", "ExactMean", "InvalidUpdate", "exact_mean"]
