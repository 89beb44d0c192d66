"""Whole secure rounds of clients of this process that do nothing, beside plain ones: time and memory.

    python benchmarks/secure_rounds.py            # a minute
    python benchmarks/secure_rounds.py --quick    # seconds

One thread, the process kept on one core, by processor time; both take turns, and the best counts. "masking"
is what the round's clients and its server do with vectors, measured by itself as `benchmarks/secure.py` does
("mask" of each client, "take" of each by the server, "unmask" with none lost); "keys" what each client does
before that: X25519, and shares of two secrets by Shamir's scheme; "the rest" is records and four exchanges
in place of one.

Memory is what a process's peak rises by over the size of the model's weights, from just before the round.
Every measurement has a process of its own. The idle clients give back the bytes that they were sent, so
what rises is the server's.
"""

from __future__ import annotations

import argparse
import logging
import os
import resource
import subprocess
import sys
from functools import partial

import numpy as np
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from secure import Ours, best_of

from lightning_fl_ext import ExactFedAvg, LocalGrid, SecureAggregation, SecureFedAvg
from lightning_fl_ext.engines import stream_replies
from lightning_fl_ext.wire import to_record

STRATEGIES = {"plain": ExactFedAvg, "secure": SecureFedAvg}


def make_app() -> ClientApp:
    app = ClientApp()

    @app.train("secure", mods=[SecureAggregation()])
    @app.train()
    def train(message: Message, context: Context) -> Message:
        metrics = MetricRecord({"num-examples": 10, "loss": 0.5})
        return Message(
            RecordDict({"arrays": message.content["arrays"], "metrics": metrics}), reply_to=message
        )

    return app


def one_round(kind: str, app: ClientApp, arrays: dict[str, np.ndarray], clients: int) -> None:
    strategy, grid = STRATEGIES[kind](fraction_evaluate=0.0), LocalGrid(app, clients)
    messages = list(strategy.configure_train(1, to_record(arrays), ConfigRecord({}), grid))
    record, _ = strategy.aggregate_train(1, stream_replies(grid, messages, None))
    assert record is not None


def compare(parameters: int, clients: int, repeats: int) -> None:
    app, arrays = make_app(), {"w": np.zeros(parameters, np.float32)}
    one = Ours(arrays, clients)
    contenders = {kind: partial(one_round, kind, app, arrays, clients) for kind in STRATEGIES}
    parts = {
        "mask": one.mask,
        "take": Ours(arrays, clients).take(),
        "unmask": Ours(arrays, clients).unmask(0),
        "keys": one.keys,
    }
    best = best_of(contenders | parts, repeats)
    arithmetic = clients * (best["mask"] + best["take"]) + best["unmask"]
    keys = clients * best["keys"]
    rest = best["secure"] - arithmetic - keys
    print(
        f"{clients:3} clients, {parameters:7} float32: plain {best['plain'] * 1e3:5.1f} ms, secure"
        f" {best['secure'] * 1e3:5.1f} ms = masking {arithmetic * 1e3:5.1f} + keys {keys * 1e3:5.1f} + rest"
        f" {rest * 1e3:4.1f}; beyond masking {(keys + rest) / best['plain']:.1f} x the plain round, beyond"
        f" keys as well {rest / best['plain']:.1f} x"
    )


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure_memory(kind: str, clients: int, parameters: int) -> None:
    app = make_app()
    one_round(kind, app, {"w": np.zeros(10, np.float32)}, clients)  # imports what is imported when used
    arrays = {"w": np.zeros(parameters, np.float32)}
    arrays["w"] += 1
    before = peak()
    one_round(kind, app, arrays, clients)
    print((peak() - before) / arrays["w"].nbytes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer parameters and repeats")
    parser.add_argument(
        "--memory", nargs=3, metavar=("KIND", "CLIENTS", "PARAMETERS"), help="one measurement"
    )
    arguments = parser.parse_args()
    logging.getLogger("flwr").setLevel(logging.ERROR)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    if arguments.memory:
        kind, clients, parameters = arguments.memory
        measure_memory(kind, int(clients), int(parameters))
        return
    scale, repeats = (10, 2) if arguments.quick else (1, 7)
    for parameters, clients in ((1000, 10), (1000, 40), (1_000_000 // scale, 10)):
        compare(parameters, clients, repeats)
    size = 10_000_000 // scale
    print(f"\npeak memory over the size of a model of {size * 4e-6:.0f} MB, one round")
    for kind in STRATEGIES:
        for clients in (10, 40):
            command = [sys.executable, __file__, "--memory", kind, str(clients), str(size)]
            found = subprocess.run(command, capture_output=True, check=True, text=True).stdout
            print(f"{kind:8}{clients:4} clients {float(found.splitlines()[-1]):6.1f} x")


if __name__ == "__main__":
    main()
