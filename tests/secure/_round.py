"""A round of the protocol among pure clients, with drop-outs at any step and a look at every message."""

from dataclasses import dataclass, field

import numpy as np

from lightning_fl_ext.aggregation import ExactMean
from lightning_fl_ext.aggregation.words import words_of_numbers
from lightning_fl_ext.secure import SecureClient, SecureServer, Terms
from lightning_fl_ext.secure.checks import check_update
from lightning_fl_ext.secure.vector import decode, encode

STEPS = ("announce", "share", "mask", "unmask")


@dataclass
class Seen:
    """All that the server receives."""

    vectors: dict = field(default_factory=dict)
    messages: list = field(default_factory=list)
    server: SecureServer | None = None


def name(i):
    return f"site-{i:03d}"


def make_updates(number, like, seed=0, scale=1.0):
    """Updates of every dtype in `like`, with their weights."""
    rng = np.random.default_rng(seed)

    def one(array):
        if array.dtype == np.bool_:
            return rng.random(array.shape) > 0.5
        if array.dtype.kind in "iu":
            return rng.integers(0, 100, array.shape).astype(array.dtype)
        values = rng.normal(0, scale, array.shape)
        if array.dtype.kind == "c":
            values = values + 1j * rng.normal(0, scale, array.shape)
        return values.astype(array.dtype)

    return [({k: one(a) for k, a in like.items()}, int(rng.integers(1, 500))) for _ in range(number)]


def run(updates, like, threshold=None, drops=None, numbers=None):
    """Run a round.

    Args:
        updates: Of each client.
        like: The model.
        threshold: Default: two thirds.
        drops: From a client's number to the step it does not answer any more.
        numbers: Other whole numbers of each client.

    Returns:
        The total, the survivors' numbers, and what the server saw.
    """
    drops = drops or {}
    number = len(updates)
    terms = Terms(b"s" * 16, number, threshold or max(-(-2 * number // 3), number // 2 + 1))
    seen = Seen()

    def alive(i, step):
        return i not in drops or STEPS.index(step) < STEPS.index(drops[i])

    means = {}
    for i, (arrays, weight) in enumerate(updates):
        means[name(i)] = ExactMean(like)
        means[name(i)].add(arrays, weight)
    wide = any(check_update(arrays, like, weight, number) for arrays, weight in updates)
    clients = {name(i): SecureClient(name(i), terms) for i in range(number) if alive(i, "announce")}
    server = SecureServer(terms, [c.announce() for c in clients.values()], wide)
    seen.server = server
    ids = [m.client_id for m in server.roster.members]
    number_of = {client: int(client.removeprefix("site-")) for client in ids}

    def at_rest(client):
        return SecureClient.from_dict(client.to_dict(), client.roster)

    for j, client in enumerate(ids):
        if alive(number_of[client], "share"):
            clients[client], message = at_rest(clients[client]).share(server.roster)
            seen.messages.append(message)
            server.take_shares(j, message)
    for j in list(server.sharers):
        if alive(number_of[ids[j]], "mask"):
            i = number_of[ids[j]]
            words = encode(means[ids[j]], wide, words_of_numbers(numbers[i] if numbers else []))
            clients[ids[j]], message = at_rest(clients[ids[j]]).mask(server.mailbox(j), words)
            seen.messages.append(message)
            seen.vectors[i] = words
            server.take_masked(j, message, words)
    request = server.request()
    for j in list(server.survivors):
        if alive(number_of[ids[j]], "unmask"):
            message = at_rest(clients[ids[j]]).unmask(request)
            seen.messages.append(message)
            server.take_unmask(j, message)
    survivors = sorted(number_of[ids[j]] for j in server.survivors)
    total = decode(like, server.unmasked(), wide, len(survivors))
    return total, survivors, seen
