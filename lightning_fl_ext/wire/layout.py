"""How an array lies in a message: as the bytes that ``np.save`` writes, or bare: its elements alone.

Bare are the dtypes that numpy lacks, and codes, which are so short that a header of 128 bytes counts.

A tensor is copied once, straight into that layout. What the package works with is a view of those bytes, so
that putting it into a message copies nothing.
"""

from __future__ import annotations

import ctypes
import io
import mmap
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_fl_ext.results.digest import canonical_bytes
from lightning_fl_ext.results.dtypes import EXTENDED_FLOATS

LARGE = 2**22
"""Bytes from which an array is written into large pages."""


def copy_in_layout(array: NDArray[Any]) -> NDArray[Any]:
    """Copy an array into bytes of its own in the layout of a message, and view it there.

    Args:
        array: Numbers or booleans, any shape, order and byte order; ``ml_dtypes`` types included.

    Returns:
        A read-only C-contiguous array of the same shape, dtype and bits.

    Example:
        >>> view = copy_in_layout(np.arange(3))
        >>> view.tolist(), message_bytes(view) is view.base
        ([0, 1, 2], True)
    """
    header = _header(array)
    data = _joined(header, array)
    return np.ndarray(array.shape, array.dtype.newbyteorder("="), buffer=data, offset=len(header))


class Blank:
    """Room for an array in the layout of a message: written to first, then put into the message as it is.

    Args:
        like: An array of the shape and dtype, whose values are not read.
        bare: As in :func:`message_bytes`.

    Example:
        >>> blank = Blank(np.zeros(3))
        >>> np.add(1, 2, out=blank.writable())
        array([3., 3., 3.])
        >>> written = blank.written()
        >>> written.tolist(), message_bytes(written) is written.base
        ([3.0, 3.0, 3.0], True)
    """

    def __init__(self, like: NDArray[Any], bare: bool = False) -> None:
        self._shape, self._dtype = like.shape, like.dtype.newbyteorder("=")
        header = b"" if bare else _header(like)
        self._start = len(header)
        self._stream = io.BytesIO(_zeros(self._start + like.nbytes))  # of which it takes possession
        self._stream.write(header)

    def writable(self) -> NDArray[Any]:
        """View the room as an array, C-contiguous and of zeros at first."""
        data = np.frombuffer(self._stream.getbuffer(), np.uint8)  # np.ndarray would not hold on to it
        return data[self._start :].view(self._dtype).reshape(self._shape)

    def written(self) -> NDArray[Any]:
        """Give what was written, read-only; without a copy if no writable view is left by then."""
        return np.ndarray(self._shape, self._dtype, self.packed(), self._start)

    def packed(self) -> bytes:
        """Give what was written as it lies in a message; see `written`."""
        return self._stream.getvalue()


def message_bytes(array: NDArray[Any], bare: bool = False) -> bytes:
    """Give an array's bytes as they lie in a message; without a copy if it is a view of just those.

    Args:
        array: As for :func:`copy_in_layout`.
        bare: Write no header.
    """
    header = b"" if bare else _header(array)
    owner: Any = array.base
    while isinstance(owner, np.ndarray):
        owner = owner.base
    if (
        isinstance(owner, bytes)
        and len(owner) == len(header) + array.nbytes
        and owner.startswith(header)
        and array.flags.c_contiguous
        and array.dtype.isnative
        and array.ctypes.data == np.frombuffer(owner, np.uint8).ctypes.data + len(header)
    ):
        return owner
    return _joined(header, array)


def _joined(header: bytes, array: NDArray[Any]) -> bytes:
    if array.nbytes < LARGE:
        return b"".join((header, canonical_bytes(array)))
    blank = Blank(array, bare=not header)
    blank.writable()[...] = array
    return blank.packed()


def _zeros(size: int) -> bytes:
    """Make new bytes; many of them in large pages where the system has those, so that fewer faults fill them.

    That is what numpy asks Linux for under its own arrays (``numpy/_core/src/multiarray/alloc.c``).
    """
    data = bytes(size)
    advice = getattr(mmap, "MADV_HUGEPAGE", None)
    if size >= LARGE and advice is not None:
        start = np.frombuffer(data, np.uint8).ctypes.data
        page = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
        ctypes.CDLL(None).madvise(
            ctypes.c_void_p(page), ctypes.c_size_t(start + size - page), advice
        )  # advice: a kernel that cannot follow it says so, and all is as before
    return data


def _header(array: NDArray[Any]) -> bytes:
    if array.dtype.name in EXTENDED_FLOATS:
        return b""
    stream = io.BytesIO()
    descr = array.dtype.newbyteorder("<").str
    np.lib.format.write_array_header_1_0(
        stream, {"descr": descr, "fortran_order": False, "shape": array.shape}
    )
    return stream.getvalue()
