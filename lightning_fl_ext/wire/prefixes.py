"""Names of state-dict entries that differ by what has wrapped a module."""

from __future__ import annotations

from collections.abc import Collection

WRAPPERS = ("_module.", "_orig_mod.", "_forward_module.", "module.", "model.", "net.")
"""What opacus, ``torch.compile``, Fabric, ``DataParallel`` and users' own wrappers put into names."""


def wrapper_prefix(wrapped: Collection[str], plain: Collection[str]) -> str | None:
    """Find the prefix that a wrapper has put into some names.

    Args:
        wrapped: Names with it.
        plain: The same names without it.

    Returns:
        The prefix; None if it is another difference.

    Example:
        >>> wrapper_prefix(["net._module.weight", "net._module.bias"], ["net.weight", "net.bias"])
        '_module.'
        >>> wrapper_prefix(["weight"], ["bias"])
    """
    for prefix in WRAPPERS:
        if wrapped and {name.replace(prefix, "", 1) for name in wrapped} == set(plain):
            return prefix
    return None
