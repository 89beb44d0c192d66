"""Secure aggregation beside the functions of Flower's SecAgg+ protocol, on the same vectors in the same run.

    python benchmarks/secure.py            # 10 clients and 10 thousand to 1 million float32; a minute
    python benchmarks/secure.py --quick    # seconds

One thread, the process kept on one core, by processor time. "mask" is all that a client does with its vector:
the check of the update, to whole numbers, the opening of shares, a key agreed on with each other client, the
masks, and the message's tag. "unmask" is all that the server does with the sum after one client of ten has
dropped out while masking: the secrets put together from their shares, the keys of the one that is gone, the
masks, and the division. Flower's side does the same by its own functions; "masks alone" leaves its keys
and secrets out, and ours in. Contenders take turns, and the best of the repeats counts.

`benchmarks/secure_rounds.py` is about whole rounds.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from itertools import cycle

import numpy as np
from flwr.common.secure_aggregation.crypto.shamir import combine_shares, create_shares
from flwr.common.secure_aggregation.crypto.symmetric_encryption import generate_shared_key
from flwr.common.secure_aggregation.ndarrays_arithmetic import (
    factor_combine,
    factor_extract,
    parameters_addition,
    parameters_mod,
    parameters_multiply,
    parameters_subtraction,
)
from flwr.common.secure_aggregation.quantization import dequantize, quantize
from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen
from flwr.supercore.primitives.asymmetric import (
    bytes_to_private_key,
    bytes_to_public_key,
    generate_key_pairs,
    private_key_to_bytes,
    public_key_to_bytes,
)

from lightning_fl_ext import ExactMean
from lightning_fl_ext.secure import SecureClient, SecureServer, Terms
from lightning_fl_ext.secure.checks import check_update
from lightning_fl_ext.secure.vector import decode, encode

CLIP, TARGET, MAX_WEIGHT, MODULUS = 8.0, 2**22, 1000.0, 2**32  # the defaults of Flower's workflow
CLIENTS, THRESHOLD = 10, 7


class Ours:
    """A round taken to the step before masking, of which any client's can be repeated."""

    def __init__(self, arrays: dict[str, np.ndarray], clients: int) -> None:
        self.arrays, self.count = arrays, clients
        self.terms = Terms(os.urandom(16), clients, -(-2 * clients // 3))
        self.clients = {f"{i:03d}": SecureClient(f"{i:03d}", self.terms) for i in range(clients)}
        self.server = SecureServer(self.terms, [c.announce() for c in self.clients.values()])
        for i, name in enumerate(self.clients):
            self.clients[name], message = self.clients[name].share(self.server.roster)
            self.server.take_shares(i, message)

    def keys(self) -> object:
        """What a client does before it masks: two pairs of keys, and shares of two secrets."""
        one = SecureClient("000", self.terms)
        others = [m for m in self.server.roster.members if m.client_id != "000"]
        return one.share(SecureServer(self.terms, [one.announce(), *others]).roster)

    def mask(self, i: int = 0) -> tuple[SecureClient, dict, np.ndarray]:
        check_update(self.arrays, self.arrays, 100 + i, self.count)
        mean = ExactMean(self.arrays)
        mean.add(self.arrays, 100 + i)
        words = encode(mean, False)
        client, message = self.clients[f"{i:03d}"].mask(self.server.mailbox(i), words)
        return client, message, words

    def take(self) -> Callable[[], object]:
        """Have one hand in, and give what the server does with that: its tag, and one more in the sum."""
        _, message, words = self.mask()

        def take() -> None:
            self.server.survivors.clear()
            self.server.take_masked(0, message, words)

        return take

    def unmask(self, lost: int) -> Callable[[], object]:
        """Have all but the last hand in, and give what is left for the server to do."""
        present = range(self.count - lost)
        for i in present:
            self.clients[f"{i:03d}"], message, words = self.mask(i)
            self.server.take_masked(i, message, words)
        request = self.server.request()
        for i in present:
            self.server.take_unmask(i, self.clients[f"{i:03d}"].unmask(request))
        total = self.server._total
        assert total is not None

        def unmask() -> object:
            self.server._total = total.copy()
            words = self.server.unmasked()
            return decode(self.arrays, words, False, len(present)).mean.result()

        return unmask


class Flower:
    """The same steps by what Flower's mod and workflow call."""

    def __init__(self, layers: list[np.ndarray]) -> None:
        self.layers = layers
        pairs = [generate_key_pairs() for _ in range(CLIENTS)]
        self.private = private_key_to_bytes(pairs[0][0])
        self.public = [public_key_to_bytes(public) for _, public in pairs[1:]]
        self.own_seed = os.urandom(32)
        self.seeds = [self.agree(public) for public in self.public]
        shared = [*[os.urandom(32)] * (CLIENTS - 1), self.private]
        self.shares = [create_shares(secret, THRESHOLD, CLIENTS)[: CLIENTS - 1] for secret in shared]
        self.total = self.masked([self.own_seed])

    def agree(self, public: bytes) -> bytes:
        return generate_shared_key(bytes_to_private_key(self.private), bytes_to_public_key(public))

    def mask(self, secrets: bool) -> object:
        """What `_collect_masked_vectors` of Flower's mod does."""
        return self.masked([self.own_seed, *(map(self.agree, self.public) if secrets else self.seeds)])

    def masked(self, seeds: list[bytes]) -> list[np.ndarray]:
        factor = round(100 / MAX_WEIGHT * TARGET)
        weighed = parameters_multiply(self.layers, factor / TARGET)
        quantized = factor_combine(factor, quantize(weighed, CLIP, TARGET))
        return parameters_mod(_with_masks(quantized, seeds), MODULUS)

    def unmask(self, secrets: bool) -> object:
        """What the last stage of Flower's workflow does."""
        seeds = [self.own_seed] * (CLIENTS - 1) + self.seeds
        if secrets:
            own = [combine_shares(shares) for shares in self.shares]
            seeds = [*own[:-1], *map(self.agree, self.public)]
        total = _with_masks(self.total, seeds)
        factor, vectors = factor_extract(parameters_mod(total, MODULUS))
        return parameters_multiply(dequantize(vectors, CLIP, TARGET), TARGET / max(factor, 1))


def _with_masks(vectors: list[np.ndarray], seeds: list[bytes]) -> list[np.ndarray]:
    shapes = [vector.shape for vector in vectors]
    for seed, change in zip(seeds, cycle((parameters_addition, parameters_subtraction)), strict=False):
        vectors = change(vectors, pseudo_rand_gen(seed, MODULUS, shapes))
    return vectors


def best_of(contenders: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Give the least processor time of each."""
    for work in contenders.values():
        work()
    best = dict.fromkeys(contenders, float("inf"))
    for _ in range(repeats):
        for name, work in contenders.items():
            start = time.process_time()
            work()
            best[name] = min(best[name], time.process_time() - start)
    return best


def compare(parameters: int, repeats: int) -> None:
    generator = np.random.default_rng(0)
    layers = [generator.standard_normal(parameters // 8, dtype=np.float32) for _ in range(8)]
    arrays = {f"layer{i}": layer for i, layer in enumerate(layers)}
    masking, unmasking, flower = Ours(arrays, CLIENTS), Ours(arrays, CLIENTS).unmask(1), Flower(layers)
    best = best_of(
        {
            "mask": masking.mask,
            "mask, Flower": partial(flower.mask, True),
            "mask, Flower's masks alone": partial(flower.mask, False),
            "unmask": unmasking,
            "unmask, Flower": partial(flower.unmask, True),
            "unmask, Flower's masks alone": partial(flower.unmask, False),
        },
        repeats,
    )
    print(f"\n{parameters} float32, {CLIENTS} clients{'ns a parameter':>29}{'x':>9}")
    for name, seconds in best.items():
        ours = best[name.split(",")[0]]
        print(f"{name:34}{seconds / parameters * 1e9:20.1f}{seconds / ours:9.1f}")


def growth(parameters: int, repeats: int) -> None:
    arrays = {"w": np.zeros(parameters, np.float32)}
    rounds = {clients: Ours(arrays, clients) for clients in (10, 40, 100)}
    keys = best_of({clients: round_.keys for clients, round_ in rounds.items()}, repeats)
    masks = best_of({clients: round_.mask for clients, round_ in rounds.items()}, repeats)
    print(f"\nof one client, {parameters} float32: ms for keys and shares, ns a parameter to mask")
    for clients, round_ in rounds.items():
        degree = len(round_.server.roster.neighbours(0))
        cost = masks[clients] / parameters * 1e9
        print(
            f"{clients:4} clients, {degree} neighbours{keys[clients] * 1e3:13.1f}{cost:10.1f}, for each"
            f" neighbour {cost / degree:.2f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer parameters and repeats")
    arguments = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    print(f"numpy {np.__version__}, flwr {version('flwr')}, cryptography {version('cryptography')}")
    sizes, repeats = ((10_000, 100_000), 2) if arguments.quick else ((10_000, 100_000, 1_000_000), 7)
    for size in sizes:
        compare(size, repeats)
    growth(sizes[-1], repeats)


if __name__ == "__main__":
    main()
