"""Names that a package imports when they are first used, and names that it had before."""

from __future__ import annotations

import importlib
import sys
import warnings
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


def import_renamed(package: str, renamed: Mapping[str, str]) -> Callable[[str], Any]:
    """Make a package's ``__getattr__`` that still gives what is asked for by an old name, with a warning.

    Args:
        package: The package's ``__name__``.
        renamed: New names by the old ones, both in this package.

    Example:
        >>> import_renamed("lightning_fl_ext.wire", {"Trip": "RoundInfo"})("Nothing")
        Traceback (most recent call last):
        ...
        AttributeError: module `lightning_fl_ext.wire` has no attribute `Nothing`
    """

    def getattr_(name: str) -> Any:
        if name not in renamed:
            raise AttributeError(f"module `{package}` has no attribute `{name}`")
        warn_renamed(f"{package}.{name}", f"{package}.{renamed[name]}")
        return getattr(sys.modules[package], renamed[name])

    return getattr_


def warn_renamed(old: str, new: str) -> None:
    """Warn the caller's caller that a name will go away."""
    warnings.warn(f"`{old}` is now `{new}`; the old name goes in the next version", DeprecationWarning, 3)
