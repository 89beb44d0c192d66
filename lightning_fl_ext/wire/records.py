"""Named arrays and Flower's `ArrayRecord`: one copy out, none in, every dtype, nothing unpickled."""

from __future__ import annotations

import io
import math
from typing import Any

import ml_dtypes
import numpy as np
from flwr.app import Array, ArrayRecord
from numpy.typing import NDArray

from lightning_fl_ext.errors import LightningFLError
from lightning_fl_ext.results import Arrays
from lightning_fl_ext.results.digest import canonical_bytes

NUMPY_STYPE = "numpy.ndarray"
"""Flower's own serialisation: the bytes of ``np.save``. Any strategy reads it."""

RAW_STYPE = "lightning_fl_ext.raw"
"""Little-endian C-ordered bytes, for dtypes that ``np.save`` would lose."""

_KINDS = "biufc"  # bool, integers, floats, complex


class PayloadError(LightningFLError):
    """An array in a message cannot be decoded: cut, altered, or of an unknown kind."""


def to_record(arrays: Arrays) -> ArrayRecord:
    """Serialise named arrays into an ``ArrayRecord``, copying each once.

    Dtypes of numpy travel as Flower's own strategies expect them (``np.save`` bytes); bfloat16 and float8
    travel as raw bytes under an ``stype`` of this package.

    Args:
        arrays: Named arrays; numbers or booleans.

    Returns:
        A record with the same names in the same order.

    Raises:
        TypeError: An array holds something else, such as strings or objects.

    Example:
        >>> record = to_record({"w": np.ones((2, 3), dtype=np.float32)})
        >>> record["w"].dtype, record["w"].stype, record["w"].numpy().sum()
        ('float32', 'numpy.ndarray', np.float32(6.0))
    """
    return ArrayRecord({name: _pack(name, array) for name, array in arrays.items()})


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


def _pack(name: str, array: NDArray[Any]) -> Array:
    shape = tuple(array.shape)
    if _is_extended(array.dtype):
        data = canonical_bytes(array).tobytes()
        return Array(dtype=array.dtype.name, shape=shape, stype=RAW_STYPE, data=data)
    if array.dtype.kind not in _KINDS:
        raise TypeError(f"array `{name}`: dtype {array.dtype} cannot be sent. Expected numbers or booleans.")
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": array.dtype.newbyteorder("<").str, "fortran_order": False, "shape": shape}
    )
    body = canonical_bytes(array)
    return Array(
        dtype=array.dtype.name,
        shape=shape,
        stype=NUMPY_STYPE,
        data=b"".join((header.getvalue(), body)),
    )


def _unpack(name: str, packed: Array) -> NDArray[Any]:
    shape = tuple(packed.shape)
    if packed.stype == RAW_STYPE:
        dtype = _extended_dtype(packed.dtype)
        if dtype is None:
            raise PayloadError(f"array `{name}`: unknown raw dtype {packed.dtype!r}")
        return _view(name, packed.data, 0, dtype, shape, "C")
    if packed.stype != NUMPY_STYPE:
        raise PayloadError(f"array `{name}`: expected stype {NUMPY_STYPE!r}, got {packed.stype!r}")
    stream = io.BytesIO(packed.data)
    try:
        version = np.lib.format.read_magic(stream)
        read = (
            np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        )
        found_shape, fortran, dtype = read(stream)
    except ValueError as error:
        raise PayloadError(f"array `{name}`: not the bytes of an array ({error})") from None
    if dtype.kind not in _KINDS:
        raise PayloadError(f"array `{name}`: expected numbers or booleans, got dtype {dtype}")
    if found_shape != shape or dtype.name != packed.dtype:
        raise PayloadError(
            f"array `{name}`: announced as {packed.dtype}{list(shape)}, holds {dtype.name}{list(found_shape)}"
        )
    return _view(name, packed.data, stream.tell(), dtype, shape, "F" if fortran else "C")


def _view(
    name: str, data: bytes, offset: int, dtype: np.dtype[Any], shape: tuple[int, ...], order: Any
) -> NDArray[Any]:
    expected = math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or len(data) - offset != expected:
        raise PayloadError(
            f"array `{name}`: expected {expected} bytes for {dtype.name}{list(shape)},"
            f" got {len(data) - offset}"
        )
    return np.frombuffer(data, dtype=dtype, offset=offset).reshape(shape, order=order)


def _is_extended(dtype: np.dtype[Any]) -> bool:
    return _extended_dtype(dtype.name) == dtype


def _extended_dtype(name: str) -> np.dtype[Any] | None:
    scalar = getattr(ml_dtypes, name, None) if name.startswith(("bfloat16", "float8")) else None
    return None if scalar is None else np.dtype(scalar)
