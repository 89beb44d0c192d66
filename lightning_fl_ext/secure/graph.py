"""Who masks with whom: everybody with everybody, or, among many, each with some (Bell et al., CCS 2020)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lightning_fl_ext.secure.keys import digest_of

COMPLETE_UP_TO = 30
"""Clients up to which everybody masks with everybody."""


def degree(clients: int) -> int:
    """Give the number of neighbours of each client.

    All others up to `COMPLETE_UP_TO` clients; above, an even number near ``10 * log2(clients / 6)``. Bell et
    al. ("Secure single-server aggregation with (poly)logarithmic overhead", section 3) show that a number
    that grows with the logarithm suffices for random neighbours. With this one, if a fifth of up to 10 000
    clients drops out, or colludes, any neighbourhood loses its majority with a probability under 10^-6.

    Example:
        >>> [degree(clients) for clients in (5, 30, 40, 100, 1000)]
        [4, 29, 28, 42, 74]
    """
    if clients <= COMPLETE_UP_TO:
        return clients - 1
    return min(clients - 1, 2 * math.ceil(5 * math.log2(clients / 6)))


class Graph:
    """Each client's neighbours, the same on all sides.

    The clients stand in a circle in an order that the seed draws, and each knows the nearest on either side
    (a Harary graph under a random relabelling; Bell et al., section 3.2).

    Args:
        clients: How many; they are numbered from 0.
        seed: 32 bytes that no one party chooses: the digest of all keys of the round.

    Example:
        >>> Graph(3, bytes(32)).neighbours(1)
        (0, 2)
        >>> {len(Graph(100, bytes(32)).neighbours(i)) for i in range(100)}
        {42}
    """

    def __init__(self, clients: int, seed: bytes) -> None:
        self._reach = degree(clients) / 2
        # The graph is public. Its order is sorted by keyed hashes, so no generator needs to stay as it is.
        whole = degree(clients) == clients - 1
        self._circle: Sequence[int] = range(clients) if whole else _order(clients, seed)
        self._place = {client: place for place, client in enumerate(self._circle)}

    def neighbours(self, client: int) -> tuple[int, ...]:
        """Give the sorted numbers of a client's neighbours, each of whom has it for one."""
        circle, place = self._circle, self._place[client]
        before, after = math.ceil(self._reach), math.floor(self._reach)
        near = (circle[(place + step) % len(circle)] for step in range(-before, after + 1) if step)
        return tuple(sorted(near))


def threshold_of(clients: int, threshold: int) -> int:
    """Give the number of holders that can put a client's secrets together.

    Among few, where all hold a share of each, it is the number that must survive. Among many it is a majority
    of the neighbours and the client itself, so that a fifth of all may drop out wherever they stand.

    Args:
        clients: How many take part.
        threshold: How many of them must survive.

    Example:
        >>> threshold_of(10, 7), threshold_of(100, 67)
        (7, 22)
    """
    holders = degree(clients) + 1
    return threshold if holders == clients else holders // 2 + 1


def _order(clients: int, seed: bytes) -> Sequence[int]:
    return sorted(range(clients), key=lambda i: digest_of(b"graph", seed, i.to_bytes(8, "little")))
