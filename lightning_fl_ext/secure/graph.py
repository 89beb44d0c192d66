"""Who masks with whom: everybody with everybody, or, among many, each with some (Bell et al., CCS 2020)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lightning_fl_ext.secure.keys import digest_of

COMPLETE_UP_TO = 30
"""Clients up to which everybody masks with everybody."""


def degree(clients: int) -> int:
    """Give the number of neighbours of each client.

    All others up to `COMPLETE_UP_TO` clients; above, an even number near ``5 * log2(clients)``. Bell et al.
    ("Secure single-server aggregation with (poly)logarithmic overhead", section 3) show that a number in
    proportion to the logarithm suffices for random neighbours.

    Example:
        >>> [degree(clients) for clients in (5, 30, 40, 100, 1000)]
        [4, 29, 28, 34, 50]
    """
    if clients <= COMPLETE_UP_TO:
        return clients - 1
    return min(clients - 1, 2 * math.ceil(2.5 * math.log2(clients)))


def neighbours(clients: int, seed: bytes) -> list[tuple[int, ...]]:
    """Give each client's neighbours, the same on all sides.

    The clients stand in a circle in an order that the seed draws, and each knows the nearest on either side
    (a Harary graph under a random relabelling; Bell et al., section 3.2).

    Args:
        clients: How many; they are numbered from 0.
        seed: 32 bytes that no one party chooses: the digest of all keys of the round.

    Returns:
        For each client the sorted numbers of its neighbours. Neighbours know each other.

    Example:
        >>> neighbours(3, bytes(32))
        [(1, 2), (0, 2), (0, 1)]
        >>> {len(of_one) for of_one in neighbours(100, bytes(32))}
        {34}
    """
    if degree(clients) == clients - 1:
        return [tuple(j for j in range(clients) if j != i) for i in range(clients)]
    # The graph is public. Its order is sorted by keyed hashes, so no generator needs to stay as it is.
    circle = _order(clients, seed)
    reach = degree(clients) // 2
    found: list[tuple[int, ...]] = [()] * clients
    for place, client in enumerate(circle):
        near = {circle[(place + step) % clients] for step in range(-reach, reach + 1)} - {client}
        found[client] = tuple(sorted(near))
    return found


def threshold_of(clients: int, threshold: int) -> int:
    """Give the number of holders that can put a client's secrets together.

    Among few, where all hold a share of each, it is the number that must survive. Among many it is a majority
    of the neighbours and the client itself, so that a fifth of all may drop out wherever they stand.

    Args:
        clients: How many take part.
        threshold: How many of them must survive.

    Example:
        >>> threshold_of(10, 7), threshold_of(100, 67)
        (7, 18)
    """
    holders = degree(clients) + 1
    return threshold if holders == clients else holders // 2 + 1


def _order(clients: int, seed: bytes) -> Sequence[int]:
    return sorted(range(clients), key=lambda i: digest_of(b"graph", seed, i.to_bytes(8, "little")))
