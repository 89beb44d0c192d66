"""Named arrays and Flower's `ArrayRecord`: no copies, every dtype, nothing unpickled."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Collection
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import numpy as np
from flwr.app import Array, ArrayRecord
from numpy.typing import NDArray

from lightning_fl_ext.errors import LightningFLError
from lightning_fl_ext.results import Arrays
from lightning_fl_ext.results.dtypes import EXTENDED_FLOATS, dtype_name
from lightning_fl_ext.wire.layout import Blank, message_bytes

NUMPY_STYPE = "numpy.ndarray"
"""Flower's own serialisation: the bytes of ``np.save``. Any strategy reads it."""

RAW_STYPE = "lightning_fl_ext.raw"
"""Little-endian C-ordered bytes without a header: for dtypes that ``np.save`` would lose, and for codes."""

_KINDS = "biufc"  # bool, integers, floats, complex

_BARE_DTYPES = EXTENDED_FLOATS | {np.dtype(c).name: np.dtype(c).newbyteorder("<") for c in "?bhiqBHIQefdFD"}

_HEADER_READERS: dict[tuple[int, int], Any] = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


_SHORT, _HEADERS = 256, 1024
"""Headers of up to so many bytes are remembered, and how many: the clients of a round all send the same."""


class PayloadError(LightningFLError):
    """An array in a message cannot be decoded: cut, altered, or of an unknown kind."""


def to_record(arrays: Arrays, bare: Collection[str] = ()) -> ArrayRecord:
    """Serialise named arrays into an ``ArrayRecord``, without a copy of those an exchange packed.

    Dtypes of numpy travel as Flower's own strategies expect them (``np.save`` bytes); bfloat16 and float8
    travel as raw bytes under an ``stype`` of this package.

    Args:
        arrays: Named arrays; numbers or booleans.
        bare: Names of those to send without the 128 bytes of ``np.save``'s header, as raw bytes of that same
            ``stype``: codes, which no plain strategy could read anyway.

    Returns:
        A record with the same names in the same order.

    Raises:
        TypeError: An array holds something else, such as strings or objects.

    Example:
        >>> record = to_record({"w": np.ones((2, 3), dtype=np.float32)})
        >>> record["w"].dtype, record["w"].stype, record["w"].numpy().sum()
        ('float32', 'numpy.ndarray', np.float32(6.0))
    """
    return ArrayRecord({name: _pack(name, array, name in bare) for name, array in arrays.items()})


def written_record(like: Arrays, write: Callable[[dict[str, NDArray[Any]]], object]) -> ArrayRecord:
    """Have new arrays written straight into the bytes of a record, so that none is copied into it.

    Args:
        like: Arrays of the names, shapes and dtypes to write; values are not read.
        write: Called with the arrays to write to, of which it must not keep any.

    Example:
        >>> record = written_record({"w": np.zeros(2)}, lambda out: np.add(1, 2, out=out["w"]))
        >>> from_record(record)["w"]
        array([3., 3.])
    """
    blanks = {name: Blank(array) for name, array in like.items()}
    write({name: blank.writable() for name, blank in blanks.items()})
    return to_record({name: blank.written() for name, blank in blanks.items()})


def from_record(record: ArrayRecord) -> dict[str, NDArray[Any]]:
    """Decode an ``ArrayRecord`` into read-only views of its bytes.

    Args:
        record: From :func:`to_record` or from Flower.

    Returns:
        Named arrays in the record's order. They are read-only and share the record's memory.

    Raises:
        PayloadError: An entry is not what it claims to be. Pickled objects are never loaded.

    Example:
        >>> from_record(to_record({"w": np.arange(3)}))["w"]
        array([0, 1, 2])
    """
    return {name: _unpack(name, array) for name, array in record.items()}


def _pack(name: str, array: NDArray[Any], bare: bool) -> Array:
    dtype, shape = array.dtype, tuple(array.shape)
    extended = dtype_name(dtype) in EXTENDED_FLOATS
    if not extended and dtype.kind not in _KINDS:
        raise TypeError(f"array `{name}`: dtype {dtype} cannot be sent. Expected numbers or booleans.")
    stype = RAW_STYPE if bare or extended else NUMPY_STYPE
    return Array(dtype_name(dtype), shape, stype, message_bytes(array, bare))


def _unpack(name: str, packed: Array) -> NDArray[Any]:
    if packed.stype == RAW_STYPE:
        return _view_raw(name, packed)
    if packed.stype == NUMPY_STYPE:
        return _view_npy(name, packed)
    raise PayloadError(
        f"array `{name}`: expected stype {NUMPY_STYPE!r} or {RAW_STYPE!r}, got {packed.stype!r}"
    )


def _view_raw(name: str, packed: Array) -> NDArray[Any]:
    if packed.dtype not in _BARE_DTYPES:
        raise PayloadError(
            f"array `{name}`: expected a dtype among {', '.join(_BARE_DTYPES)}, got {packed.dtype!r}"
        )
    return _view(name, packed, 0, _BARE_DTYPES[packed.dtype], "C")


class _Header(NamedTuple):
    """What ``np.save`` wrote before an array's numbers."""

    length: int
    shape: tuple[int, ...]
    order: Literal["C", "F"]
    dtype: np.dtype[Any]
    names: tuple[str, str]


def _read_header(data: bytes) -> _Header:
    stream = io.BytesIO(data)
    shape, fortran, dtype = _HEADER_READERS[np.lib.format.read_magic(stream)](stream)
    return _Header(stream.tell(), shape, "F" if fortran else "C", dtype, (dtype.name, str(dtype)))


_read_short_header = lru_cache(_HEADERS)(_read_header)


def _view_npy(name: str, packed: Array) -> NDArray[Any]:
    try:
        end = 10 + int.from_bytes(packed.data[8:10], "little")  # of a header of version 1
        header = _read_short_header(packed.data[:end]) if end <= _SHORT else _read_header(packed.data)
    except Exception as error:  # whatever the parser stumbles over, the bytes are not an array's
        raise PayloadError(f"array `{name}`: not the bytes of an array ({error!r})") from None
    if header.dtype.kind not in _KINDS:
        raise PayloadError(f"array `{name}`: expected numbers or booleans, got dtype {header.dtype}")
    if packed.dtype not in header.names or header.shape != packed.shape:
        raise PayloadError(
            f"array `{name}`: announced as {packed.dtype}{list(packed.shape)},"
            f" holds {header.names[0]}{list(header.shape)}"
        )
    return _view(name, packed, header.length, header.dtype, header.order)


def _view(
    name: str, packed: Array, offset: int, dtype: np.dtype[Any], order: Literal["C", "F"]
) -> NDArray[Any]:
    try:
        expected, got = math.prod(packed.shape) * dtype.itemsize, len(packed.data) - offset
        if got != expected:
            raise ValueError(f"expected {expected} bytes, got {got}")
        array: NDArray[Any] = np.ndarray(packed.shape, dtype, packed.data, offset, order=order)
        if dtype.kind == "b" and array.view(np.uint8).max(initial=0) > 1:
            raise ValueError("a boolean is neither 0 nor 1")
    except (TypeError, ValueError) as error:  # a shape may be of anything
        raise PayloadError(f"array `{name}`, {packed.dtype}{list(packed.shape)}: {error}") from None
    return array
