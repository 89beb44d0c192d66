"""What ends a command with one line instead of a traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from lightning_fl_ext.errors import LightningFLError

NOT_SO, WRONG_INPUT = 1, 2
"""Exit codes: what was asked turned out not to be so; it could not be asked like this."""


class WrongInput(LightningFLError):
    """A flag, a config file or a folder is not what a command can work with."""


@contextmanager
def refusing(what: str) -> Iterator[None]:
    """Turn the complaint of a constructor about its arguments into wrong input.

    Args:
        what: Where the arguments come from; the message starts with it.

    Example:
        >>> with refusing("`--client-option`"):
        ...     raise ValueError("`submit` must be 'last'. Got 'first'.")
        Traceback (most recent call last):
        ...
        lightning_fl_ext.cli.errors.WrongInput: `--client-option`: `submit` must be 'last'. Got 'first'.
    """
    try:
        yield
    except (TypeError, ValueError) as error:
        raise WrongInput(f"{what}: {error}") from error
