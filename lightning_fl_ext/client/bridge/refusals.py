"""Set-ups in which a local fit would go wrong silently, refused before it starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from lightning_fl_ext.client.bridge.model_state import is_deepspeed, is_fsdp1, is_sharded
from lightning_fl_ext.errors import LightningFLError
from lightning_fl_ext.lightnings import lightning_name, overrides

_AVERAGING = {"WeightAveraging", "StochasticWeightAveraging"}


def refuse_to_follow_averaging(bridge: Any, callbacks: list[Any]) -> None:
    """Refuse an averaging callback that comes before the bridge.

    Args:
        bridge: The bridge among the callbacks.
        callbacks: The Trainer's callbacks, in order.

    Raises:
        ValueError: One does.
    """
    for callback in filter(is_averaging, callbacks[: callbacks.index(bridge)]):
        name = type(callback).__name__
        raise ValueError(
            f"`{name}` precedes `FlowerBridge` in `callbacks`. It copies the module before the bridge has"
            " loaded the global weights, and would bring the old ones back at the end. Put the bridge"
            f" first: `callbacks=[FlowerBridge(...), {name}(...)]`; or drop `{name}`."
        )


def refuse_to_train_in_vain(trainer: Any) -> None:
    """Refuse an averaging callback that gives back the weights which the fit began with.

    Lightning's ``StochasticWeightAveraging`` reads the weights as an epoch begins. Of a fit of one epoch it
    averages what was received with nothing, and puts that in the place of what was trained.

    Args:
        trainer: A Lightning Trainer that is about to fit.

    Raises:
        ValueError: There is one.
    """
    for callback in trainer.callbacks:
        kinds = {base.__name__ for base in type(callback).__mro__}
        if trainer.max_epochs == 1 and "StochasticWeightAveraging" in kinds:
            name = type(callback).__name__
            raise ValueError(
                f"`{name}` averages the weights that epochs begin with, which in a fit of one epoch are those"
                " that were received: it would give them back, and nothing would be learned. Train for more"
                f" epochs (`max_epochs`), of which it leaves out the last; or drop `{name}`, or use"
                " `EMAWeightAveraging`."
            )


def refuse_other_weights(half: Any, submit: str, callbacks: Sequence[Any]) -> None:
    """Refuse to hand in other weights than the last ones, where an algorithm counts on these.

    Args:
        half: The client's half of an algorithm.
        submit: What the bridge hands in.
        callbacks: The Trainer's callbacks.

    Raises:
        LightningFLError: The half counts on the last weights, and others would be handed in.
    """
    if not half.hands_in_last:
        return
    reason = f"`submit={submit!r}`" if submit != "last" else None
    reason = next((f"`{type(c).__name__}`" for c in callbacks if is_averaging(c)), reason)
    if reason:
        raise LightningFLError(
            f"the server's algorithm `{half.name}` counts on the weights at the end of the fit, and {reason}"
            " hands in others. Leave it out, or use another strategy."
        )


def is_averaging(callback: Any) -> bool:
    """Tell a weight averaging callback of either Lightning (``EMAWeightAveraging`` is one)."""
    return bool(_AVERAGING & {base.__name__ for base in type(callback).__mro__})


def averages_buffers(callback: Any) -> bool:
    """Tell a callback that averages all tensors of a module as weights (``WeightAveraging`` and its kin)."""
    return any(base.__name__ == "WeightAveraging" for base in type(callback).__mro__)


def drop_gradients(optimizer: torch.optim.Optimizer) -> None:
    """Have a step change nothing.

    ``StochasticWeightAveraging`` ends, for a module with batch norm, by an epoch that is to measure the
    averaged weights alone. Lightning skips its backward passes, and steps all the same at its end, by the
    gradients that are left of the epoch before.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = None


def is_spent(trainer: Any) -> bool:
    """Tell a Trainer that has trained before and is at its limit: a fit would train nothing."""
    counts = (trainer.current_epoch, trainer.max_epochs), (trainer.global_step, trainer.max_steps)
    return any(done > 0 and limit not in (None, -1) and limit <= done for done, limit in counts)


SPENT = (
    "this Trainer has already trained for as many epochs or steps as it may, so this fit trains nothing, and"
    " the results of the fit before stay. Make a new Trainer for another fit."
)
"""What a bridge says of such a Trainer."""


def refuse_late_layers(trainer: Any, module: torch.nn.Module) -> None:
    """Refuse layers that DeepSpeed's ranks would not begin with as received.

    It trains a copy of the weights (at stages 1 and 2) or shards of them (at stage 3), which it makes before
    a callback sees what is built late.

    Raises:
        ValueError: The strategy is DeepSpeed.
    """
    if is_deepspeed(trainer):
        raise ValueError(
            f"under DeepSpeed `{type(module).__name__}` must have its layers when the fit begins, so that it"
            " starts from what the server sent. Build them in `__init__`, not in `setup` or"
            " `configure_model`."
        )


def refuse_script_launcher(trainer: Any) -> None:
    """Refuse to start the running script again from inside a client.

    Raises:
        ValueError: The strategy would, as ``ddp`` does with several devices.
    """
    if type(trainer.strategy.launcher).__name__ == "_SubprocessScriptLauncher":
        kind = type(trainer.strategy).__name__
        raise ValueError(
            f"`{kind}` with {trainer.world_size} process(es) starts the running script once more for every"
            " device, which inside a client would start the engine again and never return. Use"
            " `client_app`, whose `launcher` starts processes for the fit alone; or"
            " `strategy='ddp_fork'` or 'ddp_spawn', or `devices=1`."
        )


def refuse_without_validation(module: Any, source: Any) -> None:
    """Refuse to evaluate a module that does not say how, or on data that do not say on what.

    Args:
        module: A LightningModule.
        source: Its data.

    Raises:
        ValueError: It has no ``validation_step`` of its own; or the data are a LightningDataModule, and
            neither has a ``val_dataloader``.
    """
    if not overrides(module, "validation_step"):
        raise ValueError(
            f"`{type(module).__name__}` has no `validation_step`, and the server asks clients to evaluate."
            " Write one, or have the server not ask: `fraction_evaluate=0.0` in the strategy."
        )
    is_data_module = lightning_name(source, "LightningDataModule") is not None
    if is_data_module and not any(overrides(value, "val_dataloader") for value in (source, module)):
        raise ValueError(
            f"`{type(source).__name__}` has no `val_dataloader`, and the server asks clients to evaluate."
            " Write one, or have the server not ask: `fraction_evaluate=0.0` in the strategy."
        )


def refuse_without_test(module: Any, source: Any) -> None:
    """Refuse to test a module that does not say how, or on data that it was trained on.

    Args:
        module: A LightningModule.
        source: The client's data.

    Raises:
        ValueError: The module has no ``test_step`` of its own, or the data no ``test_dataloader``.
    """
    if not overrides(module, "test_step"):
        raise ValueError(
            f"`{type(module).__name__}` has no `test_step`, and the server asks clients to test the final"
            " model. Write one, or have the server not ask: leave `test` out."
        )
    if lightning_name(source, "LightningDataModule") is None or not overrides(source, "test_dataloader"):
        raise ValueError(
            f"`data` gives {type(source).__name__}, which has no `test_dataloader`, and the server asks"
            " clients to test the final model. Return a LightningDataModule that has one."
        )


def refuse_to_keep_shards(trainer: Any) -> None:
    """Refuse to keep an optimizer whose state cannot be gathered.

    Raises:
        ValueError: The strategy is another than FSDP's or `ModelParallelStrategy` (DeepSpeed's), or there are
            several nodes.
    """
    gathers = is_fsdp1(trainer) or any(
        base.__name__ == "ModelParallelStrategy" for base in type(trainer.strategy).__mro__
    )
    if trainer.num_nodes > 1 or is_deepspeed(trainer) or (is_sharded(trainer) and not gathers):
        raise ValueError(
            "`keep_optimizer` keeps the optimizer of one machine, whole or in the shards of FSDP and"
            f" `ModelParallelStrategy`. Got `{type(trainer.strategy).__name__}` on {trainer.num_nodes}"
            " node(s). Use one of these, or 'ddp', on one; or leave `keep_optimizer` out."
        )


def refuse_other_data(source: Any) -> None:
    """Refuse what a data function must not return.

    Args:
        source: What it returned.

    Raises:
        TypeError: It is neither a LightningDataModule nor a DataLoader, nor another object that iterates over
            batches (a set of data or a collection of loaders is none).
    """
    kinds = ("LightningDataModule", "CombinedLoader")
    if isinstance(source, DataLoader) or any(lightning_name(source, kind) for kind in kinds):
        return
    if isinstance(source, Dataset | Sequence | Mapping | torch.Tensor) or not hasattr(source, "__iter__"):
        raise TypeError(
            "`data` must return a LightningDataModule or a DataLoader. Got"
            f" {'None' if source is None else f'an instance of {type(source).__name__}'}. For loaders of"
            " several stages return a LightningDataModule."
        )
