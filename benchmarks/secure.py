"""Secure aggregation beside the functions of Flower's SecAgg+ protocol, on the same vectors in the same run.

    python benchmarks/secure.py            # 10 clients and 1 million float32, 40 clients; a minute
    python benchmarks/secure.py --quick    # a tenth of the parameters; seconds

One thread, the process kept on one core. "mask" is all that a client does with its vector: to whole numbers,
its own mask, one mask for each other client, and here the check of the update and the message's tag as well.
"unmask" is all that the server does with the sum after one client of ten has dropped out while masking, the
division included; here the putting together of secrets from their shares as well, which is left out of
Flower's side. Contenders take turns, and the best of the repeats counts.

The last lines are of whole rounds with clients of this process that do nothing, beside plain ones.
"""

from __future__ import annotations

import argparse
import logging
import os
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version

import numpy as np
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
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

from lightning_fl_ext import ExactFedAvg, ExactMean, LocalGrid, SecureAggregation, SecureFedAvg
from lightning_fl_ext.secure import ClientRound, ServerRound, Terms
from lightning_fl_ext.secure.checks import check_update
from lightning_fl_ext.secure.vector import decode, encode
from lightning_fl_ext.wire import to_record

CLIP, TARGET, MAX_WEIGHT, MODULUS = 8.0, 2**22, 1000.0, 2**32  # the defaults of Flower's workflow


class Ours:
    """A round taken to the step before masking, of which any client's can be repeated."""

    def __init__(self, arrays: dict[str, np.ndarray], clients: int) -> None:
        self.arrays, self.count = arrays, clients
        terms = Terms(os.urandom(16), clients, -(-2 * clients // 3))
        self.clients = {f"{i:03d}": ClientRound(f"{i:03d}", terms) for i in range(clients)}
        self.server = ServerRound(terms, [c.announce() for c in self.clients.values()])
        for i, name in enumerate(self.clients):
            self.clients[name], message = self.clients[name].share(self.server.roster)
            self.server.take_shares(i, message)

    def mask(self, i: int = 0) -> tuple[ClientRound, dict, np.ndarray]:
        check_update(self.arrays, self.arrays, 100 + i, self.count)
        mean = ExactMean(self.arrays)
        mean.add(self.arrays, 100 + i)
        words = encode(mean, False, {}, ())
        client, message = self.clients[f"{i:03d}"].mask(self.server.mailbox(i), words)
        return client, message, words

    def lose_one(self) -> Callable[[], object]:
        """Have all but the last hand in, and give what is left for the server to do."""
        for i in range(self.count - 1):
            self.clients[f"{i:03d}"], message, words = self.mask(i)
            self.server.take_masked(i, message, words)
        request = self.server.request()
        for i in range(self.count - 1):
            self.server.take_unmask(i, self.clients[f"{i:03d}"].unmask(request))
        total = self.server._total
        assert total is not None

        def unmask() -> object:
            self.server._total = total.copy()
            words = self.server.unmasked()
            return decode(self.arrays, words, False, (), self.count - 1).mean.result()

        return unmask


def flower_mask(parameters: list[np.ndarray], seeds: list[bytes]) -> list[np.ndarray]:
    """What `_collect_masked_vectors` of Flower's mod does with the update."""
    factor = round(100 / MAX_WEIGHT * TARGET)
    weighed = parameters_multiply(parameters, factor / TARGET)
    quantized = factor_combine(factor, quantize(weighed, CLIP, TARGET))
    shapes = [a.shape for a in quantized]
    for i, seed in enumerate(seeds):
        change = parameters_subtraction if i % 2 else parameters_addition
        quantized = change(quantized, pseudo_rand_gen(seed, MODULUS, shapes))
    return parameters_mod(quantized, MODULUS)


def flower_unmask(total: list[np.ndarray], seeds: list[bytes]) -> list[np.ndarray]:
    """What the last stage of Flower's workflow does with the sum."""
    shapes = [a.shape for a in total]
    for i, seed in enumerate(seeds):
        change = parameters_subtraction if i % 2 else parameters_addition
        total = change(total, pseudo_rand_gen(seed, MODULUS, shapes))
    factor, vectors = factor_extract(parameters_mod(total, MODULUS))
    return parameters_multiply(dequantize(vectors, CLIP, TARGET), TARGET / max(factor, 1))


def best_of(contenders: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    for work in contenders.values():
        work()
    best = dict.fromkeys(contenders, float("inf"))
    for _ in range(repeats):
        for name, work in contenders.items():
            start = time.perf_counter()
            work()
            best[name] = min(best[name], time.perf_counter() - start)
    return best


def compare(parameters: int, repeats: int) -> None:
    generator = np.random.default_rng(0)
    layers = [generator.standard_normal(parameters // 8, dtype=np.float32) for _ in range(8)]
    arrays = {f"layer{i}": layer for i, layer in enumerate(layers)}
    seeds = [os.urandom(32) for _ in range(18)]
    ten, forty, unmasking = Ours(arrays, 10), Ours(arrays, 40), Ours(arrays, 10)
    masked = flower_mask(layers, seeds[:1])
    degree = len(forty.server.roster.neighbours(0))
    best = best_of(
        {
            "mask, 10 clients": ten.mask,
            "mask, 10 clients, Flower": partial(flower_mask, layers, seeds[:10]),
            "unmask, 1 of 10 lost": unmasking.lose_one(),
            "unmask, 1 of 10 lost, Flower": partial(flower_unmask, masked, seeds),
            f"mask, 40 clients, {degree} neighbours": forty.mask,
        },
        repeats,
    )
    print(f"\n{parameters / 1e6:g} million float32, one thread")
    print(f"{'':34}{'ns a parameter':>16}{'x Flower':>10}")
    for name, seconds in best.items():
        flower = best.get(f"{name}, Flower")
        ratio = f"{flower / seconds:10.1f}" if flower else ""
        print(f"{name:34}{seconds / parameters * 1e9:16.1f}{ratio}")
    words = ten.mask()[2]
    print(f"bytes a parameter up: {words.nbytes / parameters:.2f}; Flower, as int64: 8.00")


def make_app() -> ClientApp:
    app = ClientApp()

    @app.train("secure", mods=[SecureAggregation()])
    @app.train()
    def train(message: Message, context: object) -> Message:
        metrics = MetricRecord({"num-examples": 10, "loss": 0.5})
        return Message(
            RecordDict({"arrays": message.content["arrays"], "metrics": metrics}), reply_to=message
        )

    return app


def rounds(parameters: int, clients: int, repeats: int) -> None:
    app = make_app()
    arrays = {"w": np.zeros(parameters, np.float32)}

    def one(make: type[ExactFedAvg]) -> None:
        strategy, grid = make(fraction_evaluate=0.0), LocalGrid(app, clients)
        messages = strategy.configure_train(1, to_record(arrays), ConfigRecord({}), grid)
        record, _ = strategy.aggregate_train(1, list(grid.send_and_receive(messages)))
        assert record is not None

    best = best_of({"plain": partial(one, ExactFedAvg), "secure": partial(one, SecureFedAvg)}, repeats)
    print(
        f"a round of {clients} idle clients, {parameters} float32: plain {best['plain'] * 1e3:.1f} ms,"
        f" secure {best['secure'] * 1e3:.1f} ms, {best['secure'] / best['plain']:.1f} x"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the parameters, fewer repeats")
    arguments = parser.parse_args()
    logging.getLogger("flwr").setLevel(logging.ERROR)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    print(f"numpy {np.__version__}, flwr {version('flwr')}, cryptography {version('cryptography')}")
    scale, repeats = (10, 2) if arguments.quick else (1, 5)
    compare(1_000_000 // scale, repeats)
    print()
    for clients in (10, 40):
        rounds(1000, clients, repeats)
    rounds(1_000_000 // scale, 10, repeats)


if __name__ == "__main__":
    main()
