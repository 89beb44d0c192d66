"""Settings of a fit that every client knows, by their names in the server's config."""

from __future__ import annotations

LEARNING_RATE = "learning-rate"
"""The rate of every optimizer of the fit."""

PROXIMAL_MU = "proximal-mu"
"""How strongly a fit is pulled towards the global weights: FedProx, under the name that Flower gives it."""

FIT_SETTINGS = LEARNING_RATE, PROXIMAL_MU


def meant(name: str) -> str | None:
    """Tell which setting a name stands for that is written in another way; None if it is none, or right.

    Example:
        >>> meant("learning_rate"), meant("ProximalMu"), meant("learning-rate"), meant("lr")
        ('learning-rate', 'proximal-mu', None, None)
    """
    plain = {_plain(setting): setting for setting in FIT_SETTINGS}
    found = plain.get(_plain(name))
    return None if found == name else found


def _plain(name: str) -> str:
    return "".join(letter for letter in name.casefold() if letter.isalnum())
