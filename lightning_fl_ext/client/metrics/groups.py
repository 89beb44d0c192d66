"""Members of a `MetricCollection` that torchmetrics might take for one another: each is updated by itself."""

from __future__ import annotations

from itertools import combinations

from torch import nn
from torchmetrics import Metric, MetricCollection

from lightning_fl_ext.metrics.configuration import configuration

_OF_COMPUTE = frozenset(
    {"adjusted", "average", "beta", "max_fpr", "normalize", "squared", "validate_args", "zero_division"}
)
"""Settings that say what a metric makes of its states, or that give them another shape."""


def stop_guessing(module: nn.Module) -> None:
    """Keep collections from sharing states among members that only look alike after their first batch.

    A collection compares its members' states after the first update, and from then on updates one of those
    whose states were equal, and computes all from it. States of members that differ in their threshold may be
    equal by chance, on a small batch most easily. A collection is let alone if its members that have states
    of one kind are updated alike, and if it was told its groups.

    Args:
        module: Its collections have not been updated yet; others are let alone.
    """
    for collection in module.modules():
        if (
            isinstance(collection, MetricCollection)
            and collection._enable_compute_groups is True
            and not collection._groups_checked
            and any(_only_look_alike(*pair) for pair in combinations(collection.values(copy_state=False), 2))
        ):
            collection._enable_compute_groups = False


def _only_look_alike(one: Metric, other: Metric) -> bool:
    if not one._defaults or one._defaults.keys() != other._defaults.keys():
        return False
    if type(one).update is not type(other).update:
        return True
    try:
        first, second = configuration(one), configuration(other)
    except (TypeError, ValueError, RuntimeError):  # an attribute of the user's that has no plain form
        return True
    return any(
        first.get(name) != second.get(name)
        for name in (first.keys() | second.keys()) - _OF_COMPUTE
        if hasattr(one, name) and hasattr(other, name)
    )
