"""Names that a package imports when they are first used."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def import_lazily(package: str, home: Mapping[str, str]) -> Callable[[str], Any]:
    """Make a package's ``__getattr__`` (PEP 562), so that importing the package costs next to nothing.

    Args:
        package: The package's ``__name__``.
        home: For each name the submodule it is in, relative to the package.

    Returns:
        A function from a name to its value, which it also leaves in the package.

    Example:
        >>> import_lazily("lightning_fl_ext", {"derive_seed": "seeds"})("derive_seed").__module__
        'lightning_fl_ext.seeds'
    """

    def getattr_(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"module `{package}` has no attribute `{name}`")
        value = getattr(importlib.import_module(f"{package}.{home[name]}"), name)
        setattr(sys.modules[package], name, value)
        return value

    return getattr_
