"""The client's half: read the states of a module's metrics, over all its processes, into one pack."""

from __future__ import annotations

import operator
from collections.abc import Collection
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat

from lightning_fl_ext.metrics.admission import check_metrics
from lightning_fl_ext.metrics.configuration import class_path, configuration
from lightning_fl_ext.metrics.discovery import label, named_metrics
from lightning_fl_ext.metrics.errors import UnsupportedMetric
from lightning_fl_ext.metrics.metric_states import Array, MetricPack, MetricStates, State
from lightning_fl_ext.metrics.ranks import updates_of_all_ranks, updates_of_this_rank

_NUMPY_FLOATS = {torch.float16, torch.float32, torch.float64}


def pack_metrics(
    module: nn.Module,
    *,
    client_id: str | None = None,
    num_examples: int | None = None,
    min_examples: int = 0,
    allow_example_states: Collection[str] = (),
    exclude_metrics: Collection[str] = (),
    names: Collection[str] | None = None,
) -> MetricPack:
    """Pack the states of the metrics of `module`, as this process has them.

    The states are copied; the metrics can be updated or reset afterwards.

    Args:
        module: The client's module after its updates; it is left as it is.
        client_id: Declared, stable name of this client.
        num_examples: Examples behind the states.
        min_examples: With fewer examples the pack holds no states (`pack.withheld`).
        allow_example_states: Metrics whose states with one row per example may leave this client; see
            `check_metrics`.
        exclude_metrics: Metrics that stay on this client; see `check_metrics`. The pack says which, and the
            others are merged without this client.
        names: Pack only these metrics; the name of a collection or wrapper stands for all metrics inside it.
            All clients must pack the same.

    Returns:
        One client's pack, for `merge_metrics`.

    Raises:
        UnsupportedMetric: If a metric's states cannot be merged to the pooled value.
        ExampleStatesNotAllowed: If a metric keeps one row per example and is not in `allow_example_states`.
        ValueError: If `min_examples` is given without `num_examples`, a count is negative, a name belongs to
            no metric, or an excluded metric is part of one that is sent.
        TypeError: If `client_id` is no text, a count is no whole number, or a text is given where a tuple of
            texts is meant.

    Example:
        >>> from torchmetrics import MeanMetric
        >>> client = nn.ModuleDict({"loss": MeanMetric()})
        >>> client["loss"].update(torch.tensor([1.0, 2.0]))
        >>> pack = pack_metrics(client, client_id="a", num_examples=2)
        >>> pack.metrics["loss"].states
        {'mean_value': array(3., dtype=float32), 'weight': array(2., dtype=float32)}
        >>> pack_metrics(client, client_id="a", num_examples=2, min_examples=10).withheld
        True
    """
    check_metrics(
        module, allow_example_states=allow_example_states, exclude_metrics=exclude_metrics, names=names
    )
    metrics = named_metrics(module, names, exclude_metrics)
    return _pack(metrics, client_id, num_examples, min_examples, exclude_metrics, synchronise=False)


def sync_and_pack(
    module: nn.Module,
    *,
    client_id: str | None = None,
    num_examples: int | None = None,
    min_examples: int = 0,
    allow_example_states: Collection[str] = (),
    exclude_metrics: Collection[str] = (),
    names: Collection[str] | None = None,
    group: Any = None,
) -> MetricPack | None:
    """Like `pack_metrics`, for a client that may run in several processes (DDP): every process calls it.

    Each metric is synchronised once, by its own `sync_context`, in the order of `module.named_modules()`,
    and has its local states again afterwards. Without an initialised process group this is `pack_metrics`.

    Args:
        module: As in `pack_metrics`.
        client_id: As in `pack_metrics`.
        num_examples: Examples of the whole client, over all processes.
        min_examples: As in `pack_metrics`.
        allow_example_states: As in `pack_metrics`.
        exclude_metrics: As in `pack_metrics`.
        names: As in `pack_metrics`.
        group: The process group that shares the examples, where not every process has some of its own (tensor
            parallelism). Default: all processes.

    Returns:
        The client's pack in the process of rank 0, None in the others.

    Raises:
        UnsupportedMetric: As in `pack_metrics`, and in all processes if these hold states that torchmetrics
            cannot gather; see `ranks.updates_of_all_ranks`.
        ExampleStatesNotAllowed: As in `pack_metrics`.
        ValueError: As in `pack_metrics`.
        TypeError: As in `pack_metrics`.

    Example:
        >>> from torchmetrics import SumMetric
        >>> client = SumMetric()
        >>> client.update(2.0)
        >>> sync_and_pack(client, client_id="a").metrics[""].states
        {'sum_value': array(2., dtype=float32)}
    """
    check_metrics(
        module, allow_example_states=allow_example_states, exclude_metrics=exclude_metrics, names=names
    )
    metrics = named_metrics(module, names, exclude_metrics)
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    pack = _pack(
        metrics, client_id, num_examples, min_examples, exclude_metrics, synchronise=distributed, group=group
    )
    return pack if not distributed or torch.distributed.get_rank() == 0 else None


def _pack(
    metrics: dict[str, Metric],
    client_id: str | None,
    num_examples: int | None,
    min_examples: int,
    exclude_metrics: Collection[str],
    *,
    synchronise: bool,
    group: Any = None,
) -> MetricPack:
    if client_id is not None and not isinstance(client_id, str):
        raise TypeError(f"`client_id` must be a text. Got {client_id!r}; write {str(client_id)!r}.")
    excluded = tuple(sorted(exclude_metrics))
    min_examples = _whole("min_examples", min_examples)
    num_examples = None if num_examples is None else _whole("num_examples", num_examples)
    if min_examples < 0 or (num_examples is not None and num_examples < 0):
        raise ValueError(
            f"Expected `num_examples` and `min_examples` not to be negative. Got {num_examples} and "
            f"{min_examples}."
        )
    if min_examples and num_examples is None:
        raise ValueError(
            f"`min_examples={min_examples}` needs `num_examples`, the examples behind the states."
        )
    if num_examples is not None and num_examples < min_examples:
        return MetricPack({}, client_id, num_examples, True, excluded)
    updates = updates_of_all_ranks(metrics, group) if synchronise else updates_of_this_rank(metrics)
    packed = {}
    for name, metric in metrics.items():
        count = updates[name]
        states: dict[str, State] = {}
        if count:
            with metric.sync_context(metric.dist_sync_fn, group) if synchronise else nullcontext():
                values, synced = metric.metric_state, metric._is_synced
            states = {state: _to_state(name, metric, state, value, synced) for state, value in values.items()}
        packed[name] = MetricStates(class_path(metric), configuration(metric), count, states)
    return MetricPack(packed, client_id, num_examples, False, excluded)


def _whole(argument: str, value: Any) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"`{argument}` must be a whole number. Got {value!r}.") from None


def _to_state(name: str, metric: Metric, state: str, value: Any, synced: bool) -> State:
    """Copy of one state; see `MetricStates.states` for its form."""
    is_list = isinstance(metric._defaults[state], list)
    tensors = value if isinstance(value, list) else [value]
    for tensor in tensors:
        if not isinstance(tensor, Tensor) or tensor.is_complex():
            kind = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            raise UnsupportedMetric(
                f"{label(name, metric)}: state `{state}` holds {kind}, expected real tensors."
            )
    if is_list:
        elements = [_to_numpy(tensor) for tensor in tensors]
        dtype = np.result_type(*(element.dtype for element in elements)) if elements else np.dtype(np.float32)
        return tuple(element.astype(dtype, copy=False) for element in elements)
    reduction = metric._reductions[state]
    if synced and reduction is dim_zero_cat:
        value = value.flatten(0, 1)
    elif not synced and reduction is None:
        value = value.unsqueeze(0)
    return _to_numpy(value)


def _to_numpy(value: Tensor) -> Array:
    value = value.detach().cpu()
    if value.is_floating_point() and value.dtype not in _NUMPY_FLOATS:
        value = value.float()
    return value.numpy().copy()
