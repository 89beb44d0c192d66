"""Server: peak memory for 4, 16 and 64 clients beside Flower's FedAvg; cost of screening, order and digests.

Run it with ``python benchmarks/server.py``; it takes a minute or two. Memory is what a process's peak rises
by from just before the fit, over the size of the model, for a round of clients that hand in an 80 MB
model each, one after the other, in this process. Every measurement has a process of its own. Costs are the
best of five.
"""

import argparse
import json
import logging
import resource
import subprocess
import sys
import time

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg

from lightning_fl_ext import ExactFedAvg, ExactMean, FederatedTrainer, LocalGrid, digest
from lightning_fl_ext.aggregation.kernels import FUSED_FROM
from lightning_fl_ext.engines import private
from lightning_fl_ext.results.score import pseudo_sort_scoring_function
from lightning_fl_ext.server.screening.checks import ValueLimits, screen_train_reply
from lightning_fl_ext.server.screening.norms import is_finite
from lightning_fl_ext.wire import from_record, to_record

PARAMETERS = 20_000_000  # float32: 80 MB
LAYERS = 100


def model():
    layers = [torch.nn.Linear(PARAMETERS // LAYERS // 100, 100, bias=False) for _ in range(LAYERS)]
    return torch.nn.Sequential(*layers)


def client():
    """Answers with the weights it is sent, each a little changed."""
    app = ClientApp()

    @app.train()
    def train(message, context):
        share = np.float32(1 + context.node_config["partition-id"] / 1000)
        record = message.content["arrays"]
        for name in list(record):
            record[name] = to_record({name: record[name].numpy() * share})[name]
        content = RecordDict({"arrays": record, "metrics": MetricRecord({"num-examples": 10})})
        return Message(content, reply_to=message)

    @app.query()
    def query(message, context):
        name = str(context.node_config["partition-id"])
        return Message(RecordDict({"client": ConfigRecord({"client-id": name})}), reply_to=message)

    return app


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def compile_loops():
    small = {"w": np.ones(FUSED_FROM, np.float32)}
    mean = ExactMean(small)
    mean.add_many([(small, 1)] * 5)
    mean.result()


def measure_memory(who, num_clients):
    logging.getLogger("flwr").setLevel(logging.ERROR)
    grid = LocalGrid(client(), num_clients)
    loaded = peak()
    if who == "ExactFedAvg":
        compile_loops()  # numba, whatever the model's size: reported by itself
    loaded = peak() - loaded
    net = model()
    size = sum(p.numel() * p.element_size() for p in net.parameters())
    before = peak()
    start = time.perf_counter()
    if who == "ExactFedAvg":
        strategy = ExactFedAvg(fraction_evaluate=0.0)
        FederatedTrainer(1, strategy, enable_progress_bar=False).fit(net, grid)
    else:
        arrays = ArrayRecord(net.state_dict())
        FedAvg(fraction_evaluate=0.0).start(grid, arrays, num_rounds=1)
    seconds = time.perf_counter() - start
    print(json.dumps({"times": (peak() - before) / size, "seconds": seconds, "loaded": loaded / 1e6}))


def best(function, repeats=5):
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return min(seconds) * 1e9 / PARAMETERS


def measure_costs():
    private.ensure_identity()
    rng = np.random.default_rng(0)
    arrays = {str(i): rng.random(PARAMETERS // LAYERS, dtype=np.float32) for i in range(LAYERS)}
    content = RecordDict({"arrays": to_record(arrays), "metrics": MetricRecord({"num-examples": 10})})
    reply = Message(content, dst_node_id=1, message_type="train")
    views = from_record(content["arrays"])

    def screen(**limits):
        return lambda: screen_train_reply(reply, "a", 1, ValueLimits(**limits), arrays)

    costs = {
        "reading the bytes once (np.max)": best(lambda: [np.max(view) for view in views.values()]),
        "screening": best(screen()),
        "screening, with the range of an exact sum": best(screen(max_term=2.0**30)),
        "screening, with `max_update_norm`": best(screen(max_update_norm=1e9)),
        "is_finite alone": best(lambda: [is_finite(view) for view in views.values()]),
        "order: pseudo-sort score": best(
            lambda: pseudo_sort_scoring_function(("a", list(views.values()), 10))
        ),
        "digest (SHA-256), for the ledger": best(lambda: digest(views), repeats=3),
    }
    for name, cost in costs.items():
        print(f"{name:45} {cost:8.4f} ns per parameter")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--memory", nargs=2, metavar=("WHO", "CLIENTS"), help="one measurement, as JSON")
    arguments = parser.parse_args()
    if arguments.memory:
        measure_memory(arguments.memory[0], int(arguments.memory[1]))
        return
    print(f"peak memory over the size of a model of {PARAMETERS * 4 / 1e6:.0f} MB, one round")
    for who in ("ExactFedAvg", "Flower's FedAvg.start"):
        for num_clients in (4, 16, 64):
            command = [sys.executable, __file__, "--memory", who, str(num_clients)]
            found = json.loads(
                subprocess.run(command, capture_output=True, check=True).stdout.splitlines()[-1]
            )
            print(
                f"{who:22} {num_clients:3} clients  {found['times']:6.1f} x  {found['seconds']:6.1f} s"
                + f"  (numba, once: {found['loaded']:.0f} MB)" * (who == "ExactFedAvg")
            )
    measure_costs()


if __name__ == "__main__":
    main()
