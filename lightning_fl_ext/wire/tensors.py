"""Torch tensors and numpy arrays: the same bits on both sides, for every dtype."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lightning_fl_ext.results.dtypes import EXTENDED_FLOATS
from lightning_fl_ext.wire.layout import copy_in_layout

# Torch dtypes that numpy lacks: the `ml_dtypes` type of the same name, and a torch integer to carry its bits.
_EXTENDED: dict[torch.dtype, tuple[np.dtype[Any], torch.dtype]] = {
    getattr(torch, name): (dtype, torch.int16 if dtype.itemsize == 2 else torch.uint8)
    for name, dtype in EXTENDED_FLOATS.items()
    if hasattr(torch, name)
}
_EXTENDED_BACK = {numpy: (dtype, carrier) for dtype, (numpy, carrier) in _EXTENDED.items()}


def is_made_of_others(tensor: torch.Tensor) -> bool:
    """Tell a tensor subclass that computes in its own way and has no memory of its own.

    Example:
        >>> is_made_of_others(torch.nn.Parameter(torch.zeros(2)))
        False
    """
    own: Any = type(tensor).__torch_dispatch__
    return own is not torch.Tensor.__torch_dispatch__ and own is not torch.nn.Parameter.__torch_dispatch__


def to_numpy(tensor: torch.Tensor) -> NDArray[Any]:
    """Copy a tensor into a C-contiguous numpy array of its own.

    Args:
        tensor: Dense, any shape, device and dtype that numpy or ``ml_dtypes`` has: floats down to float8,
            bfloat16, complex, integers, bool.

    Returns:
        A read-only array that shares no memory with the tensor, laid out so that a message takes it without
        another copy. bfloat16 and float8 come as ``ml_dtypes`` types.

    Raises:
        TypeError: The tensor is sparse, quantized, of a subclass that is made of other tensors, on ``meta``,
            or of a dtype without a numpy counterpart.

    Example:
        >>> to_numpy(torch.tensor([1.5, 2.0], dtype=torch.bfloat16))
        array([1.5, 2], dtype=bfloat16)
    """
    if is_made_of_others(tensor):
        kind = f"{type(tensor).__module__.split('.')[0]}.{type(tensor).__name__}"
        raise TypeError(
            f"a {kind} is made of other tensors and has no array of its own; federate the module with plain"
            " tensors and convert it after the last round, or convert it back first (`dequantize()`)"
        )
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta:
        kind = "quantized" if tensor.is_quantized else "meta" if tensor.is_meta else str(tensor.layout)
        raise TypeError(
            f"a {kind} tensor has no dense array; convert it first (`dequantize()`, `to_dense()`)"
        )
    tensor = tensor.detach().resolve_conj().resolve_neg()
    if tensor.dtype in _EXTENDED:
        extended, carrier = _EXTENDED[tensor.dtype]
        bits: NDArray[Any] = tensor.view(carrier).cpu().numpy()
        return copy_in_layout(bits.view(extended))
    try:
        return copy_in_layout(tensor.cpu().numpy())
    except TypeError:
        raise TypeError(
            f"a tensor of dtype {tensor.dtype} has no numpy counterpart; convert it first"
        ) from None


def to_torch(array: NDArray[Any]) -> torch.Tensor:
    """Copy a numpy array into a tensor of its own, on the CPU.

    Args:
        array: Numbers or booleans, any shape, layout and byte order; ``ml_dtypes`` types included.

    Returns:
        A contiguous tensor with the same shape and bits.

    Raises:
        TypeError: The dtype has no torch counterpart.

    Example:
        >>> to_torch(np.array(3, dtype=np.int64))
        tensor(3)
    """
    if array.dtype in _EXTENDED_BACK:
        dtype, carrier = _EXTENDED_BACK[array.dtype]
        bits = np.array(array, order="C").view(str(carrier).removeprefix("torch."))
        return torch.from_numpy(bits).view(dtype)
    native = array.dtype.newbyteorder("=") if not array.dtype.isnative else array.dtype
    try:
        return torch.from_numpy(np.array(array, dtype=native, order="C"))
    except TypeError:
        raise TypeError(f"an array of dtype {array.dtype} has no torch counterpart") from None
