"""What a metric was built with, as plain text that two machines can compare.

Two metrics of one class whose configurations differ count different things (`thresholds=50` against
`thresholds=20`, five classes against three), and their states can often be added without an error.
So the configuration travels with the states and is compared before anything is merged.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import (
    dim_zero_cat,
    dim_zero_max,
    dim_zero_mean,
    dim_zero_min,
    dim_zero_sum,
)

from lightning_fl_ext.metrics.discovery import own_states

_REDUCTIONS: dict[Any, str] = {
    dim_zero_sum: "sum",
    dim_zero_mean: "mean",
    dim_zero_max: "max",
    dim_zero_min: "min",
    dim_zero_cat: "cat",
    None: "none",
}
# Attributes of every metric that say where and how it runs, not what it counts.
_RUNTIME = {
    "training",
    "update",
    "compute",
    "compute_on_cpu",
    "compute_with_cache",
    "sync_on_compute",
    "dist_sync_on_step",
    "dist_sync_fn",
    "process_group",
    "distributed_available_fn",
}


def class_path(metric: Metric) -> str:
    """Module and name of the metric's class.

    Example:
        >>> from torchmetrics import MeanMetric
        >>> class_path(MeanMetric())
        'torchmetrics.aggregation.MeanMetric'
    """
    return _dotted(type(metric))


def reduction_name(metric: Metric, state: str) -> str:
    """Declared reduction of a state: sum, mean, max, min, cat, none, or the dotted name of a custom function.

    Example:
        >>> from torchmetrics import MeanMetric
        >>> reduction_name(MeanMetric(), "weight")
        'sum'
    """
    reduction = metric._reductions[state]
    return _REDUCTIONS[reduction] if reduction in _REDUCTIONS else _dotted(reduction)


def configuration(metric: Metric) -> dict[str, str]:
    """Everything that decides what `metric` counts, each value as JSON text.

    These are the public attributes that are not None, the buffers, and for each state its reduction and
    default. Attributes with a leading underscore and states are not part of it: what changes while a metric
    is updated belongs in one of these two.

    Args:
        metric: Any metric. Of its tensors only dtype, shape and a hash of the values are told.

    Returns:
        Value by attribute name, and `"state NAME"` for each state.

    Example:
        >>> from torchmetrics import SumMetric
        >>> configuration(SumMetric())
        {'nan_strategy': '"warn"', 'state_name': '"sum_value"',
         'state sum_value': '"sum from float32[] = 0.0"'}
    """
    states = own_states(metric)
    attributes = {
        name: value
        for name, value in vars(metric).items()
        if not (
            name.startswith("_")
            or name in _RUNTIME
            or _is_of_deepspeed(name, metric)
            or name in metric._defaults
            or isinstance(value, torch.device)
        )
    }
    # Tensors among the attributes of a metric are settings, those of a wrapper are results (MinMaxMetric).
    if not states:
        attributes = {name: value for name, value in attributes.items() if not isinstance(value, Tensor)}
    described = {**attributes, **dict(metric.named_buffers(recurse=False))}
    for state in states:
        default = metric._defaults[state]
        start = "a list" if isinstance(default, list) else _describe_tensor(default)
        described[f"state {state}"] = f"{reduction_name(metric, state)} from {start}"
    return {
        name: json.dumps(_plain(value), sort_keys=True)
        for name, value in described.items()
        if value is not None
    }


def _is_of_deepspeed(name: str, metric: Metric) -> bool:
    """Tell what DeepSpeed hangs on every module at stage 3, metrics included."""
    return "ds_id" in vars(metric) and (name.startswith("ds_") or name in _OF_DEEPSPEED)


_OF_DEEPSPEED = {"all_parameters", "applied_pre_backward_ref_cnt", "pre_bwd_fn", "post_bwd_fn"}


def _plain(value: Any, depth: int = 0) -> Any:
    """`value` in JSON's types, without memory addresses, alike in every process."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Tensor):
        return _describe_tensor(value)
    if isinstance(value, np.ndarray):
        return _describe_tensor(torch.from_numpy(np.array(value)))
    if isinstance(value, Mapping):
        return {str(key): _plain(item, depth) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, depth) for item in value]
    if isinstance(value, set | frozenset):
        return sorted((_plain(item, depth) for item in value), key=str)
    if isinstance(value, functools.partial):
        return [_plain(value.func), _plain(value.args, depth), _plain(value.keywords, depth)]
    if callable(value) and hasattr(value, "__qualname__"):
        return _dotted(value)
    if isinstance(value, torch.dtype):
        return str(value)
    if depth:
        return _dotted(type(value))
    settings = {
        name: _plain(item, depth + 1) for name, item in sorted(getattr(value, "__dict__", {}).items())
    }
    return {"class": _dotted(type(value)), **settings}


def _describe_tensor(value: Tensor) -> str:
    kind = f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    value = value.detach().cpu()
    if value.numel() == 1:
        return f"{kind} = {value.item()}"
    digest = hashlib.sha256(value.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()
    return f"{kind} #{digest[:16]}"


def _dotted(value: Any) -> str:
    module = getattr(value, "__module__", None)
    name = getattr(value, "__qualname__", type(value).__qualname__)
    return f"{module}.{name}" if module else name
