"""State dicts and other trees of plain values, tensors and arrays, as JSON data and named tensors."""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord

from lightning_fl_ext.errors import LightningFLError
from lightning_fl_ext.wire import from_record, to_numpy, to_record, to_torch

_PLAIN = (type(None), bool, int, float, str)
_TENSOR, _STRIDE, _ARRAY, _SCALAR = "tensor", "stride", "array", "scalar"
_TUPLE, _DICT, _COUNTER, _RECORD, _DTYPE = "tuple", "dict", "counter", "record", "dtype"


def flatten(tree: Any, name: str = "state", advice: str = "") -> tuple[Any, dict[str, torch.Tensor]]:
    """Take a tree apart, without pickle.

    Args:
        tree: ``None``, booleans, numbers, strings, dense tensors, numpy arrays and scalars, array records,
            torch dtypes; and lists, tuples and dicts of them. A dict's keys are plain values, or tuples of
            these.
        name: What the tree is called in tensors' names and in errors.
        advice: What an error says to do.

    Returns:
        JSON data, and the tensors it refers to: copies, contiguous and on the CPU.

    Raises:
        LightningFLError: Something in the tree is of another kind.

    Example:
        >>> flatten({"step": 3, 0: (torch.ones(2), None)})
        ({'dict': [['step', 3], [0, {'tuple': [{'tensor': 'state.0.0'}, None]}]]},
         {'state.0.0': tensor([1., 1.])})
    """
    tensors: dict[str, torch.Tensor] = {}
    try:
        return _encode(tree, name, tensors), tensors
    except LightningFLError as error:
        raise LightningFLError(f"{error} {advice}".rstrip()) from None


def unflatten(data: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    """Put together what :func:`flatten` took apart: equal values of the same types, tensors bit by bit.

    Tensors come on the CPU, with the strides they had.

    Raises:
        Exception: Of any kind, if it is not what :func:`flatten` gave; it takes no more memory than that.

    Example:
        >>> unflatten(*flatten({1: [2.5, (None, "a")]}))
        {1: [2.5, (None, 'a')]}
    """
    if isinstance(data, list):
        return [unflatten(value, tensors) for value in data]
    if not isinstance(data, dict):
        return data
    if _TENSOR in data:
        return _with_strides(tensors[data[_TENSOR]], data.get(_STRIDE))
    if _ARRAY in data:
        return to_numpy(tensors[data[_ARRAY]]).copy()
    if _SCALAR in data:
        return to_numpy(tensors[data[_SCALAR]])[()]
    if _RECORD in data:
        return to_record({name: to_numpy(tensors[where]) for name, where in data[_RECORD].items()})
    if _DTYPE in data:
        return _dtype(data[_DTYPE])
    if _TUPLE in data:
        return tuple(unflatten(value, tensors) for value in data[_TUPLE])
    kind, pairs = (Counter, data[_COUNTER]) if _COUNTER in data else (dict, data[_DICT])
    return kind({unflatten(key, tensors): unflatten(value, tensors) for key, value in pairs})


def _encode(value: Any, where: str, tensors: dict[str, torch.Tensor]) -> Any:
    kind = type(value)
    if kind in _PLAIN:
        return value
    if kind in (torch.Tensor, torch.nn.Parameter) and value.layout is torch.strided and not value.is_meta:
        value = value.detach().resolve_conj().resolve_neg()
        marker = {_TENSOR: _add(tensors, where, value.to("cpu", copy=True).contiguous())}
        strides = torch.empty_like(value, device="meta").stride()  # its own, if it is dense in memory
        plain = torch.empty(value.shape, device="meta").stride()
        return marker if strides == plain else {**marker, _STRIDE: list(strides)}
    if kind is np.ndarray or isinstance(value, np.generic):
        with suppress(TypeError):  # of a dtype that torch does not have
            tensor = to_torch(np.asarray(value))
            return {_ARRAY if kind is np.ndarray else _SCALAR: _add(tensors, where, tensor)}
    if kind is ArrayRecord:
        arrays = from_record(value).items()
        return {_RECORD: {k: _add(tensors, f"{where}.{k}", to_torch(array)) for k, array in arrays}}
    if kind is torch.dtype:
        return {_DTYPE: str(value).removeprefix("torch.")}
    if kind is list:
        return [_encode(item, f"{where}.{i}", tensors) for i, item in enumerate(value)]
    if kind in (tuple, torch.Size):
        return {_TUPLE: [_encode(item, f"{where}.{i}", tensors) for i, item in enumerate(value)]}
    if kind in (dict, OrderedDict, defaultdict, Counter):
        pairs = [[_key(k, where), _encode(item, f"{where}.{k}", tensors)] for k, item in value.items()]
        return {_COUNTER if kind is Counter else _DICT: pairs}
    raise LightningFLError(
        f"`{where}` of type {kind.__module__}.{kind.__qualname__} cannot be kept: expected numbers, strings,"
        " dense tensors, arrays, or lists, tuples and dicts of them."
    )


def _key(key: Any, where: str) -> Any:
    if type(key) is tuple:
        return {_TUPLE: [_key(part, where) for part in key]}
    if type(key) in _PLAIN:
        return key
    raise LightningFLError(
        f"a key of `{where}` of type {type(key).__name__} cannot be kept: expected a number or a string."
    )


def _add(tensors: dict[str, torch.Tensor], name: str, tensor: torch.Tensor) -> str:
    while name in tensors:  # keys 1 and "1", say
        name += "'"
    tensors[name] = tensor
    return name


def _dtype(name: Any) -> torch.dtype:
    found = getattr(torch, name)
    if not isinstance(found, torch.dtype):
        raise TypeError(f"{name} is no dtype")
    return found


def _with_strides(tensor: torch.Tensor, strides: list[int] | None) -> torch.Tensor:
    if strides is None:
        return tensor
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, strides, strict=True))
    if tensor.numel() and (min(strides, default=0) < 0 or last + 1 != tensor.numel()):
        raise ValueError("strides of another tensor")
    return torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype).copy_(tensor)
