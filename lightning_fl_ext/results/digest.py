"""The digest: SHA-256 over the canonical bytes of named arrays."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_fl_ext.results.dtypes import dtype_name


def digest(arrays: Mapping[str, NDArray[Any]] | Sequence[NDArray[Any]]) -> str:
    """Compute the SHA-256 over the arrays' canonical bytes.

    Each entry contributes its name, dtype name, shape and little-endian C-contiguous bytes, each
    prefixed with its length, in the order given. So two models share a digest exactly if they have the
    same names, dtypes, shapes and bits, wherever and however they are laid out in memory. Note that bits
    are compared: ``-0.0`` and ``0.0`` differ.

    Args:
        arrays: Named arrays, in state-dict order; or a plain list, whose names are ``"0"``, ``"1"``, ….

    Returns:
        64 hexadecimal digits.

    Raises:
        TypeError: An array holds Python objects or records, which have no canonical bytes.

    Example:
        >>> import numpy as np
        >>> a = np.arange(6, dtype=np.float32).reshape(2, 3)
        >>> digest({"w": a}) == digest({"w": np.asfortranarray(a)})
        True
        >>> digest({"w": a}) == digest({"w": a.reshape(3, 2)})
        False
    """
    entries: Iterable[tuple[str, NDArray[Any]]]
    entries = arrays.items() if isinstance(arrays, Mapping) else ((str(i), a) for i, a in enumerate(arrays))
    sha = hashlib.sha256()
    for name, array in entries:
        if array.dtype.hasobject or array.dtype.names:
            raise TypeError(
                f"array `{name}` of dtype {array.dtype} has no canonical bytes; convert it to numbers"
            )
        data = canonical_bytes(array)
        shape = ",".join(map(str, array.shape))
        described = (name.encode(), dtype_name(array.dtype).encode(), shape.encode())
        sha.update(b"".join(part for text in described for part in (_length(text), text)) + _length(data))
        sha.update(data)
    return sha.hexdigest()


def canonical_bytes(array: NDArray[Any]) -> memoryview:
    """View an array's elements as little-endian C-ordered bytes, copying only if they are not yet so."""
    flat = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).reshape(-1)
    return flat.view(np.uint8).data if flat.size else memoryview(b"")


def _length(data: bytes | memoryview) -> bytes:
    return len(data).to_bytes(8, "little")
