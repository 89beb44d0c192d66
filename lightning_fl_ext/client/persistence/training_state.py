"""Everything in a Trainer that goes on from fit to fit: read as a tree of plain values, and put back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from lightning_fl_ext.client.bridge.model_state import is_fsdp1, is_sharded
from lightning_fl_ext.client.persistence.local_entries import describe
from lightning_fl_ext.client.persistence.sharded_state import gather_optimizer, spread_optimizer
from lightning_fl_ext.metrics.discovery import unwrapped


def read_training(trainer: Any) -> dict[str, Any]:
    """Read the state of optimizers, schedulers, scaler and data module, and the counters.

    Args:
        trainer: A Lightning Trainer that has just fitted. In several processes every rank makes this call.

    Returns:
        A tree that shares its tensors with the optimizers.
    """
    inner = trainer.fit_loop.epoch_loop
    return {
        "optimizers": [_read_optimizer(trainer, optimizer) for optimizer in trainer.strategy.optimizers],
        "schedulers": [config.scheduler.state_dict() for config in trainer.lr_scheduler_configs],
        "precision": trainer.precision_plugin.state_dict(),
        "data": trainer.datamodule.state_dict() if trainer.datamodule is not None else {},
        "epochs": trainer.current_epoch,
        "steps": trainer.global_step,
        "batches": inner.batch_progress.total.ready,
        "logged": inner._batches_that_stepped,
    }


def restore_training(trainer: Any, state: Mapping[str, Any]) -> None:
    """Put back what :func:`read_training` read. The fit then trains as many epochs and steps as it was to.

    Args:
        trainer: A Lightning Trainer whose fit is about to start, with optimizers and schedulers made.
        state: Read in a fit of the same model; see :func:`describe_training`.
    """
    optimizers, states = trainer.strategy.optimizers, state["optimizers"]
    if is_sharded(trainer):
        states = [_spread(trainer, o, saved) for o, saved in zip(optimizers, states, strict=True)]
        for optimizer, saved in zip(optimizers, states, strict=True):
            optimizer.load_state_dict(saved)
    else:
        trainer.strategy.load_optimizer_state_dict({"optimizer_states": states})
    for optimizer, saved in zip(optimizers, states, strict=True):
        _undo_casts(optimizer, saved)
    for config, saved in zip(trainer.lr_scheduler_configs, state["schedulers"], strict=True):
        config.scheduler.load_state_dict(saved)
    if state["precision"]:
        trainer.precision_plugin.load_state_dict(state["precision"])
    if state["data"] and trainer.datamodule is not None:
        trainer.datamodule.load_state_dict(state["data"])
    _restore_counters(trainer, state)


def span_run(trainer: Any, rounds: int) -> tuple[int | None, int]:
    """Have the Trainer's limits be those of the whole run while optimizers and schedules are made.

    ``max_epochs``, ``max_steps`` and ``estimated_stepping_batches`` then tell the length of the run, as a
    schedule over the run needs to know it.

    Args:
        trainer: A Lightning Trainer whose fit is about to start.
        rounds: Rounds of the whole run; 0 if that is unknown.

    Returns:
        The limits of one fit, for :func:`limit_fit`.
    """
    epochs, steps = trainer.fit_loop.max_epochs, trainer.fit_loop.epoch_loop.max_steps
    limit_fit(trainer, *(limit * max(rounds, 1) if (limit or 0) > 0 else limit for limit in (epochs, steps)))
    return epochs, steps


def limit_fit(trainer: Any, epochs: int | None, steps: int) -> None:
    """Set the Trainer's limits."""
    trainer.fit_loop.max_epochs, trainer.fit_loop.epoch_loop.max_steps = epochs, steps


def _read_optimizer(trainer: Any, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    if is_fsdp1(trainer):
        from lightning_fl_ext.client.persistence.flat_state import gather_flat

        return gather_flat(trainer.strategy.model, optimizer, trainer.strategy.root_device)
    if is_sharded(trainer):
        return gather_optimizer(optimizer)
    state: dict[str, Any] = trainer.strategy.optimizer_state(optimizer)
    return state


def _spread(trainer: Any, optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> dict[str, Any]:
    if is_fsdp1(trainer):
        from lightning_fl_ext.client.persistence.flat_state import spread_flat

        return spread_flat(trainer.strategy.model, optimizer, saved)
    return spread_optimizer(optimizer, saved)


def describe_training(
    trainer: Any, module: torch.nn.Module, shapes: Mapping[str, Sequence[int]]
) -> dict[str, str]:
    """Describe what a state belongs to, part by part: two fits may share a state if they are described alike.

    Args:
        trainer: A Lightning Trainer whose fit is about to start.
        module: Its LightningModule.
        shapes: Of its parameters, by name, before the strategy had it. Under FSDP1 each rank sees pieces.
    """
    pieces = is_fsdp1(trainer)
    names = {parameter: name for name, parameter in module.named_parameters(remove_duplicate=False)}
    described = {"precision": str(trainer.precision)}
    for i, optimizer in enumerate(trainer.strategy.optimizers):
        described[f"optimizer {i}"] = type(optimizer).__qualname__
        for g, group in enumerate(optimizer.param_groups):
            for p, parameter in enumerate(group["params"]):
                name = unwrapped(names.get(parameter, "a parameter outside the module"))
                kind = describe(parameter, shapes.get(name, "") if pieces else None)
                described[f"optimizer {i}, group {g}, parameter {p}"] = f"{name}: {kind}"
    for i, config in enumerate(trainer.lr_scheduler_configs):
        described[f"scheduler {i}"] = type(config.scheduler).__qualname__
    return described


def _undo_casts(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> None:
    """Give state tensors the dtype they had: torch casts them to that of their parameter as it loads them."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, entries in saved.get("state", {}).items():
        loaded = optimizer.state[parameters[index]] if isinstance(index, int) else {}
        for name, value in entries.items():
            if isinstance(value, torch.Tensor) and name in loaded and loaded[name].dtype != value.dtype:
                loaded[name] = value.to(loaded[name].device)


def _restore_counters(trainer: Any, state: Mapping[str, Any]) -> None:
    outer, inner = trainer.fit_loop, trainer.fit_loop.epoch_loop
    for progress in (outer.epoch_progress.total, outer.epoch_progress.current):
        _set(progress, state["epochs"])
    _set(inner.automatic_optimization.optim_progress.optimizer.step.total, state["steps"])
    _set(inner.manual_optimization.optim_step_progress.total, state["steps"])
    _set(inner.batch_progress.total, state["batches"])
    inner._batches_that_stepped = state["logged"]
    # Limits count from the start of this fit.
    outer.max_epochs = _later(outer.max_epochs, state["epochs"])
    outer.min_epochs = _later(outer.min_epochs, state["epochs"])
    inner.max_steps = _later(inner.max_steps, state["steps"])
    inner.min_steps = _later(inner.min_steps, state["steps"])
    # Else Lightning would make the first epoch's iterator twice, which draws from the generator twice.
    outer._resuming_from_checkpoint = state["epochs"] > 0


def _set(progress: Any, count: int) -> None:
    for name in vars(progress):
        setattr(progress, name, count)


def _later(limit: int | None, by: int) -> int | None:
    return limit if limit is None or limit < 0 else limit + by
