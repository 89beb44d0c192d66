"""An optimizer's state under FSDP1, which joins parameters and spreads them: gathered, and spread again."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch.distributed.fsdp import (
    FullOptimStateDictConfig,
    FullStateDictConfig,
    OptimStateKeyType,
    StateDictType,
)
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP


def gather_flat(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, device: torch.device
) -> dict[str, Any]:
    """Give an optimizer's state dict as one process would have it, in rank 0's main memory.

    Args:
        model: The outermost module that FSDP1 has wrapped.
        optimizer: Of its parameters. Every rank makes this call.
        device: What this rank computes on.

    Returns:
        The state dict; without any state on the other ranks.
    """
    # Told to move to the processor what is there already, FSDP1 gives all states of a parameter one memory.
    with _whole(model, rank0_only=True, offload_to_cpu=device.type != "cpu"):
        named = FSDP.optim_state_dict(model, optimizer)
    if not named.get("param_groups"):
        return {"state": {}, "param_groups": []}
    numbered: dict[str, Any] = FSDP.rekey_optim_state_dict(
        named, OptimStateKeyType.PARAM_ID, model, optim=optimizer
    )
    return numbered


def spread_flat(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]
) -> dict[str, Any]:
    """Spread what :func:`gather_flat` gave, or what one process had, over however many ranks there are.

    Args:
        model: The outermost module that FSDP1 has wrapped.
        optimizer: What is to load it. Every rank makes this call.
        saved: The same in each.
    """
    named = FSDP.rekey_optim_state_dict(dict(saved), OptimStateKeyType.PARAM_NAME, model, optim=optimizer)
    with _whole(model):
        return dict(FSDP.optim_state_dict_to_load(model, optimizer, named))


def _whole(model: torch.nn.Module, **options: bool) -> AbstractContextManager[None]:
    configs = FullStateDictConfig(), FullOptimStateDictConfig(**options)
    return FSDP.state_dict_type(model, StateDictType.FULL_STATE_DICT, *configs)
