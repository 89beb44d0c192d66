"""An optimizer's state whose tensors are spread over processes: gathered whole, and spread again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from lightning_fl_ext.errors import LightningFLError


def gather_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Give an optimizer's state dict with whole tensors, as one process would have them.

    Args:
        optimizer: Of DTensors (FSDP2, tensor parallelism), plain tensors, or both. Every process that holds a
            part makes this call.

    Raises:
        LightningFLError: A part of the state is spread otherwise than its parameter.
    """
    saved = optimizer.state_dict()
    state = {
        index: {name: _whole(value, name, parameter) for name, value in saved["state"][index].items()}
        for index, parameter in _numbered(optimizer, saved).items()
    }
    return {**saved, "state": {**saved["state"], **state}}


def spread_optimizer(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> dict[str, Any]:
    """Spread what :func:`gather_optimizer` gave as the optimizer's parameters are, on however many processes.

    Args:
        optimizer: What is to load it. Every process that holds a part makes this call.
        saved: The same in each.
    """
    state = {
        index: {name: _spread(value, parameter) for name, value in saved["state"][index].items()}
        for index, parameter in _numbered(optimizer, saved).items()
    }
    return {**saved, "state": {**saved["state"], **state}}


def _numbered(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> dict[int, torch.Tensor]:
    """Give the parameters that have a state, by their number in it; the same order in all processes."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return {index: parameter for index, parameter in enumerate(parameters) if index in saved["state"]}


def _is_spread(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and hasattr(value, "full_tensor")


def _whole(value: Any, name: str, parameter: torch.Tensor) -> Any:
    if not _is_spread(value):
        return value
    if value.shape != parameter.shape:
        raise LightningFLError(
            f"`keep_optimizer` keeps state in shards that has its parameter's shape. Got `{name}` of shape"
            f" {list(value.shape)} for a parameter of shape {list(parameter.shape)}. Use another optimizer,"
            " or leave `keep_optimizer` out."
        )
    return value.full_tensor()


def _spread(value: Any, parameter: Any) -> Any:
    if not (_is_spread(parameter) and isinstance(value, torch.Tensor) and value.shape == parameter.shape):
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
