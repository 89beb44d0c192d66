"""A strategy's state as plain data: what it is configured with, and what it has learned so far."""

from __future__ import annotations

import copy
import sys
from typing import Any

import numpy as np
from flwr.app import ArrayRecord
from flwr.serverapp.strategy import Strategy
from numpy.typing import NDArray

from lightning_fl_ext.errors import LightningFLError
from lightning_fl_ext.wire import from_record, to_record

_ARRAY, _RECORD, _TUPLE = "__array__", "__record__", "__tuple__"
_STRATEGY, _STATE = "__strategy__", "__state__"


def copy_strategy(strategy: Strategy) -> Strategy:
    """Copy a strategy with all its state, so that a fit leaves the one that was given as it was.

    Modules that it refers to (Flower's privacy accountant does) are not copied.
    """
    return copy.deepcopy(strategy, {id(module): module for module in list(sys.modules.values())})


def encode_strategy(strategy: Strategy) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Take a strategy's attributes apart into JSON and arrays, without pickle.

    Numbers, strings, arrays, array records, and lists, tuples and dicts of them are kept; so are attributes
    that are strategies, or have ``state_dict`` and ``load_state_dict``, as Flower's privacy accountants have.
    Functions are part of the code, and are kept by name only.

    Args:
        strategy: Any Flower strategy.

    Returns:
        JSON data, and the arrays it refers to.

    Raises:
        LightningFLError: An attribute is of another kind, so that a resumed run could not be the same.

    Example:
        >>> from flwr.serverapp.strategy import FedAvg
        >>> encode_strategy(FedAvg(fraction_train=0.5))[0]["fraction_train"]
        0.5
    """
    arrays: dict[str, NDArray[Any]] = {}
    return _encode_strategy(strategy, type(strategy).__name__, arrays), arrays


def restore_strategy(strategy: Strategy, state: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> None:
    """Put back what :func:`encode_strategy` took apart.

    Raises:
        LightningFLError: An attribute refuses its state, as an accountant of another configuration does.
    """
    for name, value in state.items():
        current = getattr(strategy, name, None)
        if isinstance(value, dict) and _STRATEGY in value:
            restore_strategy(current, value[_STRATEGY], arrays)  # type: ignore[arg-type]
        elif isinstance(value, dict) and _STATE in value:
            try:
                current.load_state_dict(_decode(value[_STATE], arrays))  # type: ignore[union-attr]
            except Exception as error:
                raise LightningFLError(
                    f"strategy attribute `{type(strategy).__name__}.{name}` does not take the checkpoint's"
                    f" state: {error}"
                ) from error
        elif not callable(current) or current is None:
            setattr(strategy, name, _decode(value, arrays))


def _encode_strategy(strategy: Strategy, where: str, arrays: dict[str, NDArray[Any]]) -> dict[str, Any]:
    state: dict[str, Any] = {}
    for name, value in vars(strategy).items():
        place = f"{where}.{name}"
        if isinstance(value, Strategy):
            place = f"{place}.{type(value).__name__}"
            state[name] = {_STRATEGY: _encode_strategy(value, place, arrays)}
        elif hasattr(value, "state_dict") and hasattr(value, "load_state_dict"):
            state[name] = {_STATE: _encode(value.state_dict(), place, arrays)}
        else:
            state[name] = _encode(value, place, arrays)
    return state


def _encode(value: Any, where: str, arrays: dict[str, NDArray[Any]]) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic):
        value = np.asarray(value)
    if isinstance(value, np.ndarray):
        arrays[where] = value
        return {_ARRAY: where}
    if isinstance(value, ArrayRecord):
        arrays.update({f"{where}/{k}": a for k, a in from_record(value).items()})
        return {_RECORD: {k: f"{where}/{k}" for k in value}}
    if isinstance(value, dict) and all(isinstance(k, str) for k in value):
        return {k: _encode(v, f"{where}.{k}", arrays) for k, v in value.items()}
    if isinstance(value, list | tuple):
        items = [_encode(v, f"{where}.{i}", arrays) for i, v in enumerate(value)]
        return {_TUPLE: items} if isinstance(value, tuple) else items
    if callable(value):
        return f"function {getattr(value, '__qualname__', type(value).__name__)}"
    raise LightningFLError(
        f"strategy attribute `{where}` of type {type(value).__name__} cannot be saved: expected numbers,"
        " strings, arrays, lists and dicts of them, or an object with `state_dict` and `load_state_dict`."
        " Keep such data in another form, or run without `RoundCheckpoint`."
    )


def _decode(value: Any, arrays: dict[str, NDArray[Any]]) -> Any:
    if isinstance(value, list):
        return [_decode(v, arrays) for v in value]
    if not isinstance(value, dict):
        return value
    if _ARRAY in value:
        return arrays[value[_ARRAY]]
    if _RECORD in value:
        return to_record({k: arrays[where] for k, where in value[_RECORD].items()})
    if _TUPLE in value:
        return tuple(_decode(v, arrays) for v in value[_TUPLE])
    return {k: _decode(v, arrays) for k, v in value.items()}
