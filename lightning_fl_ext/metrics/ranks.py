"""What the processes of one client must agree on before they synchronise their metrics."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import torch
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat
from torchmetrics.utilities.distributed import gather_all_tensors

from lightning_fl_ext.metrics.discovery import example_states, label, own_states
from lightning_fl_ext.metrics.errors import UnsupportedMetric


def updates_of_this_rank(metrics: Mapping[str, Metric]) -> dict[str, int]:
    """Update count by metric name; 0 for wrappers and compositions, which keep no states.

    Example:
        >>> from torchmetrics import SumMetric
        >>> metric = SumMetric()
        >>> metric.update(1.0)
        >>> updates_of_this_rank({"total": metric})
        {'total': 1}
    """
    return {name: metric._update_count if own_states(metric) else 0 for name, metric in metrics.items()}


def updates_of_all_ranks(metrics: Mapping[str, Metric], group: Any = None) -> dict[str, int]:
    """Update count by metric name, summed over the ranks (of a process group); every rank calls this.

    torchmetrics gathers a list with the reduction None element by element, so that ranks with lists of
    different lengths wait for each other for ever; it stands a float tensor in for an empty list; and it
    stacks the ranks' tensors. So all ranks first tell each other their counts, and all refuse together
    what would hang or fail in one of them.

    Raises:
        UnsupportedMetric: If the ranks hold tensor states of different shapes, or lists with the reduction
            None of different lengths, or if only some hold any rows of examples.
    """
    if not metrics:
        return {}
    updates = updates_of_this_rank(metrics)
    rows = {name: example_states(metric) for name, metric in metrics.items()}
    counts = [
        count
        for name, metric in metrics.items()
        for count in (
            updates[name],
            _shapes(metric),
            *(_length(getattr(metric, state)) for state in rows[name]),
        )
    ]
    device = next(iter(metrics.values())).device
    table = torch.stack(gather_all_tensors(torch.tensor(counts, device=device), group)).cpu()
    columns = iter(table.T.tolist())
    for name, metric in metrics.items():
        updates[name] = sum(next(columns))
        if len(set(next(columns))) > 1:
            raise _ungatherable(name, metric, "states of different shapes")
        for state in rows[name]:
            lengths = next(columns)
            concatenated = (
                isinstance(metric._defaults[state], list) and metric._reductions[state] is dim_zero_cat
            )
            if len(set(lengths)) > 1 and not (concatenated and min(lengths)):
                raise _ungatherable(name, metric, f"{lengths} entries of `{state}`")
    return updates


def _shapes(metric: Metric) -> int:
    """A number that tells the shapes of the states without rows of examples."""
    rows = example_states(metric)
    shapes = [tuple(getattr(metric, state).shape) for state in own_states(metric) if state not in rows]
    return zlib.crc32(repr(shapes).encode())


def _length(value: Any) -> int:
    return len(value) if isinstance(value, list) or value.ndim else 1


def _ungatherable(name: str, metric: Metric, held: str) -> UnsupportedMetric:
    return UnsupportedMetric(
        f"{label(name, metric)}: the processes of this client hold {held}, which torchmetrics cannot gather. "
        "Give every process as many examples and batches, or validate in one process (`devices=1`)."
    )
