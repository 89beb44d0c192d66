"""A strategy's state as plain data: what it is configured with, and what it has learned so far."""

from __future__ import annotations

import copy
import sys
from typing import Any

import torch
from flwr.serverapp.strategy import Strategy

from lightning_fl_ext.errors import LightningFLError
from lightning_fl_ext.trees import flatten, unflatten

_VALUE, _STATE, _STRATEGY = "value", "state", "strategy"
_ADVICE = (
    "A strategy's attributes have to be such, or objects with `state_dict` and `load_state_dict`. Hold it in"
    " another form; if no later round depends on it, name it in the class's `scratch`; or run without"
    " `RoundCheckpoint`."
)


def copy_strategy(strategy: Strategy) -> Strategy:
    """Copy a strategy with all its state, so that a fit leaves the one that was given as it was.

    Modules that it refers to (Flower's privacy accountant does) are not copied.
    """
    return copy.deepcopy(strategy, {id(module): module for module in list(sys.modules.values())})


def encode_strategy(strategy: Strategy, where: str = "") -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Take a strategy's attributes apart into JSON and tensors, without pickle.

    What :func:`~lightning_fl_ext.trees.flatten` takes is kept; so are attributes that are strategies, or have
    ``state_dict`` and ``load_state_dict``, as Flower's privacy accountants have. Functions are part of the
    code, and are not kept; nor is what a class names in its ``scratch``, which is memory and no state.

    Args:
        strategy: Any Flower strategy.
        where: What it is called in tensors' names and in errors. Default: the name of its class.

    Returns:
        JSON data, and the tensors it refers to.

    Raises:
        LightningFLError: An attribute is of another kind, so that a resumed run could not be the same.
        TypeError: A class's ``scratch`` is no tuple.

    Example:
        >>> from flwr.serverapp.strategy import FedAvg
        >>> encode_strategy(FedAvg(fraction_train=0.5))[0]["fraction_train"]
        {'value': 0.5}
    """
    where = where or type(strategy).__name__
    state: dict[str, Any] = {}
    tensors: dict[str, torch.Tensor] = {}
    scratch = {name for cls in type(strategy).__mro__ for name in _scratch_of(cls)}
    for name, value in vars(strategy).items():
        if name in scratch:
            continue
        place = f"{where}.{name}"
        if isinstance(value, Strategy):
            kind, (data, found) = _STRATEGY, encode_strategy(value, f"{place}.{type(value).__name__}")
        elif _has_state(value):
            kind, (data, found) = _STATE, flatten(value.state_dict(), place, _ADVICE)
        elif callable(value):
            continue
        else:
            kind, (data, found) = _VALUE, flatten(value, place, _ADVICE)
        state[name] = {kind: data}
        tensors |= found
    return state, tensors


def restore_strategy(strategy: Strategy, state: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    """Put back what :func:`encode_strategy` took apart.

    Raises:
        LightningFLError: An attribute refuses its state, as an accountant of another configuration does; or
            the run that was stopped had none, or this one has none.
    """
    for name, kept in state.items():
        current: Any = getattr(strategy, name, None)
        if _STRATEGY in kept:
            restore_strategy(current, kept[_STRATEGY], tensors)
        elif _STATE in kept or _has_state(current):
            try:
                _load(current, kept, tensors)
            except Exception as error:
                raise LightningFLError(
                    f"strategy attribute `{type(strategy).__name__}.{name}` does not take the checkpoint's"
                    f" state: {error}"
                ) from error
        elif not callable(current):
            setattr(strategy, name, unflatten(kept[_VALUE], tensors))


def _scratch_of(cls: type) -> tuple[str, ...]:
    names = vars(cls).get("scratch", ())
    if not isinstance(names, tuple | list | set | frozenset):  # a text would be taken for its letters
        raise TypeError(f"`{cls.__name__}.scratch` must be a tuple of attributes' names. Got {names!r}.")
    return tuple(names)


def _load(current: Any, kept: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    if not _has_state(current) or _STATE not in kept:
        there = "an object's state" if _STATE in kept else "a plain value"
        raise LightningFLError(
            f"it is an instance of {type(current).__name__}, and the checkpoint holds {there}. Use what the"
            " checkpoint was made with, or start anew in another `default_root_dir`."
        )
    current.load_state_dict(unflatten(kept[_STATE], tensors))


def _has_state(value: Any) -> bool:
    return hasattr(value, "state_dict") and hasattr(value, "load_state_dict")
