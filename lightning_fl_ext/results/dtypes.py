"""The floating dtypes that numpy lacks, as `ml_dtypes` defines them."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import ml_dtypes
import numpy as np

EXTENDED_FLOATS: dict[str, np.dtype[Any]] = {
    name: np.dtype(getattr(ml_dtypes, name))
    for name in (
        "bfloat16",
        "float8_e4m3fn",
        "float8_e4m3fnuz",
        "float8_e5m2",
        "float8_e5m2fnuz",
        "float8_e8m0fnu",
    )
}
"""By name, the same in torch. numpy counts none as ``np.floating``, and ``np.save`` forgets which it was."""


@lru_cache(256)
def dtype_name(dtype: np.dtype[Any]) -> str:
    """Give a dtype's name; numpy itself makes it anew each time, which takes longer than a small array.

    Example:
        >>> dtype_name(np.dtype(">f4"))
        'float32'
    """
    return dtype.name
