"""What ends a command with one line instead of a traceback."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from lightning_fl_ext.errors import LightningFLError

NOT_SO, WRONG_INPUT = 1, 2
"""Exit codes: what was asked turned out not to be so; it could not be asked like this."""


class WrongInput(LightningFLError):
    """A flag, a config file or a folder is not what a command can work with."""


@contextmanager
def refusing(what: str, names: Mapping[str, str] | None = None) -> Iterator[None]:
    """Turn the complaint of a constructor about its arguments into wrong input.

    Args:
        what: Where the arguments come from; the message starts with it if it names none of ``names``.
        names: By an argument's name, what it is called on the command line.

    Example:
        >>> with refusing("`--client-option`", {"submit": "--client-option submit"}):
        ...     raise ValueError("`submit` must be 'last'. Got 'first'.")
        Traceback (most recent call last):
        ...
        lightning_fl_ext.cli.errors.WrongInput: `--client-option submit` must be 'last'. Got 'first'.
    """
    try:
        yield
    except (TypeError, ValueError) as error:
        flags = names or {}
        odd = re.search(r"(unexpected|multiple values for) keyword argument '(\w+)'", str(error))
        if odd and odd[2] in flags:
            why = "there is none of that name" if odd[1] == "unexpected" else "it has a flag of its own"
            raise WrongInput(f"{what}: `{flags[odd[2]]}` is not taken: {why}.") from error
        said = re.sub(r"`(\w+)`", lambda found: f"`{flags.get(found[1], found[1])}`", str(error))
        raise WrongInput(said if said != str(error) else f"{what}: {said}") from error
