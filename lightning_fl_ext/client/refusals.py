"""Set-ups in which a local fit would go wrong silently, refused before it starts."""

from __future__ import annotations

from typing import Any

_LIGHTNING_MODULES = {"lightning.pytorch.core.module", "pytorch_lightning.core.module"}
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


def is_averaging(callback: Any) -> bool:
    """Tell a weight averaging callback of either Lightning (``EMAWeightAveraging`` is one)."""
    return bool(_AVERAGING & {base.__name__ for base in type(callback).__mro__})


def refuse_zero3(trainer: Any) -> None:
    """Refuse DeepSpeed ZeRO-3, whose full state dict exists nowhere.

    Raises:
        ValueError: The strategy is DeepSpeed at stage 3.
    """
    if getattr(trainer.strategy, "zero_stage_3", False):
        raise ValueError(
            "`FlowerBridge` cannot collect weights that DeepSpeed ZeRO stage 3 spreads over the ranks."
            " Use stage 2, or `strategy='fsdp'`."
        )


def refuse_script_launcher(trainer: Any) -> None:
    """Refuse to start the running script again from inside a client.

    Raises:
        ValueError: The strategy is ``ddp`` with several devices, outside a cluster that starts processes.
    """
    if type(trainer.strategy.launcher).__name__ == "_SubprocessScriptLauncher":
        raise ValueError(
            "`strategy='ddp'` starts the running script once more for every device, which inside a client"
            " would start the engine again and never return. Use `strategy='ddp_spawn'` or 'ddp_fork', or"
            " `devices=1`."
        )


def refuse_without_validation(module: Any) -> None:
    """Refuse to evaluate a module that does not say how.

    Args:
        module: A LightningModule.

    Raises:
        ValueError: It has no ``validation_step`` of its own.
    """
    if type(module).validation_step.__module__ in _LIGHTNING_MODULES:
        raise ValueError(
            f"`{type(module).__name__}` has no `validation_step`, and the server asks clients to evaluate."
            " Write one, or have the server not ask: `fraction_evaluate=0.0` in the strategy."
        )
