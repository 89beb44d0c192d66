"""A strategy's state as plain data: what it is configured with, and what it has learned so far."""

from __future__ import annotations

from typing import Any

import numpy as np
from flwr.app import ArrayRecord
from flwr.serverapp.strategy import Strategy
from numpy.typing import NDArray

from lightning_fl_ext.errors import LightningFLError
from lightning_fl_ext.wire import from_record, to_record

_ARRAY, _RECORD, _TUPLE, _STRATEGY = "__array__", "__record__", "__tuple__", "__strategy__"


def encode_strategy(strategy: Strategy) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Take a strategy's attributes apart into JSON and arrays, without pickle.

    Numbers, strings, arrays, array records, wrapped strategies, and lists, tuples and dicts of them are kept.
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
    return _encode(vars(strategy), f"{type(strategy).__name__}", arrays), arrays


def restore_strategy(strategy: Strategy, state: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> None:
    """Put back what :func:`encode_strategy` took apart."""
    for name, value in state.items():
        current = getattr(strategy, name, None)
        if isinstance(value, dict) and _STRATEGY in value:
            restore_strategy(current, value[_STRATEGY], arrays)  # type: ignore[arg-type]
        elif not callable(current) or current is None:
            setattr(strategy, name, _decode(value, arrays))


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
    if isinstance(value, Strategy):
        return {_STRATEGY: _encode(vars(value), f"{where}.{type(value).__name__}", arrays)}
    if isinstance(value, dict) and all(isinstance(k, str) for k in value):
        return {k: _encode(v, f"{where}.{k}", arrays) for k, v in value.items()}
    if isinstance(value, list | tuple):
        items = [_encode(v, f"{where}.{i}", arrays) for i, v in enumerate(value)]
        return {_TUPLE: items} if isinstance(value, tuple) else items
    if callable(value):
        return f"function {getattr(value, '__qualname__', type(value).__name__)}"
    raise LightningFLError(
        f"strategy attribute `{where}` of type {type(value).__name__} cannot be saved: expected numbers,"
        " strings, arrays, or lists and dicts of them. Keep such data in another form, or run without"
        " `RoundCheckpoint`."
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
