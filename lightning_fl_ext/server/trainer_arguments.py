"""The objects that a FederatedTrainer is given, checked before anything runs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import Strategy

from lightning_fl_ext.arguments import choice, got, kind_of, metric_name
from lightning_fl_ext.failures import described
from lightning_fl_ext.lightnings import lightning_name, overrides
from lightning_fl_ext.server.callbacks import RoundCallback, RoundCheckpoint, RoundLedger, RoundProgressBar
from lightning_fl_ext.server.screening.limits import Limits
from lightning_fl_ext.server.settings import check_settings
from lightning_fl_ext.wire import Exchange

log = logging.getLogger(__name__)

_ALONE = (RoundCheckpoint, RoundLedger, RoundProgressBar)
_GRID = ("get_node_ids", "get_nodes", "push_messages", "pull_messages")
_LOGGER = ("log_metrics", "save", "finalize")


def strategy_object(value: Any) -> Strategy:
    """Take a strategy.

    Raises:
        TypeError: It is something else.
    """
    if not isinstance(value, Strategy):
        raise TypeError(
            "`strategy` must be a strategy of `flwr.serverapp.strategy`, or `ExactFedAvg`." + got(value)
        )
    return value


def exchange_object(value: Any) -> Exchange:
    """Take an exchange.

    Raises:
        TypeError: It is something else.
    """
    if not isinstance(value, Exchange):
        raise TypeError("`exchange` must be a WeightExchange or a MaskExchange." + got(value))
    return value


def limits_object(value: Any) -> Limits:
    """Take limits.

    Raises:
        TypeError: It is something else.
    """
    if not isinstance(value, Limits):
        raise TypeError("`limits` must be a `Limits`, such as `Limits(metrics=5000)`." + got(value))
    return value


def site_modes(value: Any) -> dict[str, str]:
    """Take metrics to tell across sites, each with its mode.

    Raises:
        TypeError: It is something else.
        ValueError: A mode is not ``"min"`` or ``"max"``.
    """
    if not isinstance(value, Mapping):
        raise TypeError("`site_metrics` must be a dict such as `{'val_f1': 'max'}`." + got(value))
    return {
        metric_name(name): choice(f"site_metrics[{name!r}]", mode, ("min", "max"))
        for name, mode in value.items()
    }


def train_settings(value: Any) -> Mapping[str, Any] | Callable[[int], Mapping[str, Any]]:
    """Take settings for clients, or a function of the round that gives them.

    Raises:
        TypeError: They are something else.
        LightningFLError: A setting cannot travel, or is not the user's to make.
    """
    if callable(value):
        return value  # type: ignore[no-any-return]
    if not isinstance(value, Mapping):
        message = "`train_config` must be a dict of settings, or a function from the round to one."
        raise TypeError(message + got(value))
    return check_settings(value, "`train_config`")


def callback_list(value: Any, enable_progress_bar: bool) -> list[RoundCallback]:
    """Take one callback or several.

    Raises:
        TypeError: One is something else.
        ValueError: Two would get into each other's way, or one is there that was switched off.
    """
    callbacks = _several(value)
    for callback in callbacks:
        if isinstance(callback, RoundCallback):
            continue
        message = "`callbacks` must be RoundCallback objects." + got(callback)
        if any(hasattr(callback, hook) for hook in ("on_train_start", "on_train_epoch_end")):
            message += (
                " The callbacks of a Trainer belong to the clients: `client_app(...,"
                " trainer={'callbacks': [...]})`."
            )
        raise TypeError(message)
    for kind in _ALONE:
        if (several := sum(isinstance(callback, kind) for callback in callbacks)) > 1:
            raise ValueError(
                f"`callbacks` holds {several} {kind.__name__}, which would get into each other's way:"
                " keep one."
            )
    if not enable_progress_bar and any(isinstance(callback, RoundProgressBar) for callback in callbacks):
        raise ValueError(
            "`callbacks` holds a RoundProgressBar, and `enable_progress_bar` is False: take the one away, or"
            " leave the other out."
        )
    return callbacks


def logger_list(value: Any) -> list[Any]:
    """Take one of Lightning's loggers, several, or none.

    Raises:
        TypeError: One is something else.
    """
    loggers = [] if value is False else _several(value)
    for logger in loggers:
        if isinstance(logger, type) or not all(hasattr(logger, name) for name in _LOGGER):
            raise TypeError(
                "`logger` must be loggers of Lightning's, such as `CSVLogger('runs')`, or None for none."
                + got(logger)
            )
    return loggers


def check_ckpt_path(value: Any, callbacks: list[RoundCallback]) -> None:
    """Refuse what is no path, and point it out if nothing would be written to go on from.

    Raises:
        TypeError: It is none.
    """
    if value is not None and not isinstance(value, str | Path):
        raise TypeError("`ckpt_path` must be 'last', the path of a checkpoint, or None." + got(value))
    if value == "last" and not any(isinstance(callback, RoundCheckpoint) for callback in callbacks):
        log.warning("`ckpt_path='last'`, but no RoundCheckpoint among `callbacks` writes a checkpoint")


def check_grid(grid: Any) -> None:
    """Refuse what is no grid.

    Raises:
        TypeError: It is not.
    """
    missing = [name for name in _GRID if not hasattr(grid, name)]
    if isinstance(grid, type) or missing:
        hint = ""
        if isinstance(grid, ClientApp):
            hint = " Put it into one: `LocalGrid(client, num_clients=10)`."
        elif 0 < len(missing) < len(_GRID):
            hint = f" It has no `{missing[0]}`: derive it from `flwr.serverapp.Grid`."
        raise TypeError("`grid` must be a Flower Grid." + got(grid) + hint)


def make_module(model: torch.nn.Module | Callable[[], torch.nn.Module]) -> torch.nn.Module:
    """Take a module, or make one, with the layers that its ``configure_model`` builds.

    Args:
        model: The module, its class, or a function without arguments.

    Raises:
        TypeError: It is none of these.
        ValueError: The module's shapes are not known yet.
    """
    expected = "`model` must be a torch module, its class, or a function without arguments that makes one."
    if isinstance(model, torch.nn.Module):
        module = model
    elif not callable(model):
        raise TypeError(expected + got(model))
    else:
        try:
            module = model()
        except TypeError as error:
            error.add_note("`model` is called without arguments: give an object, or `lambda: Lit(...)`.")
            raise
        if not isinstance(module, torch.nn.Module):
            raise TypeError(f"{expected} It made {kind_of(module)}.")
    _build_late_layers(module)
    lazy = [name for name, value in module.named_parameters() if torch.nn.parameter.is_lazy(value)]
    if lazy:
        raise ValueError(f"`model` has no shapes yet for {lazy[:3]}: run a batch through it first.")
    return module


def _build_late_layers(module: Any) -> None:
    """Have a LightningModule build the layers that it leaves to its Trainer."""
    if lightning_name(module, "LightningModule") is None or not overrides(module, "configure_model"):
        return
    try:
        module.configure_model()
    except Exception as error:  # it may shard over devices, which are the clients'
        log.warning(
            "`configure_model` of `%s` raised %s on the server, where it has no Trainer: layers that it has"
            " not built yet are missing from the global model. Give the server a `model` that has them.",
            type(module).__name__,
            described(error),
        )


def _several(value: Any) -> list[Any]:
    if value is None:
        return []
    one = isinstance(value, RoundCallback | str | type) or not isinstance(value, Iterable)
    return [value] if one else list(value)
