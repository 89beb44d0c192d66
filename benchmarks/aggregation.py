"""Averaging model updates: the exact mean beside Flower's `aggregate_arrayrecords`, in the same run.

    python benchmarks/aggregation.py            # four cases, from 20 million float32 x 12 clients; 2.5 GiB
    python benchmarks/aggregation.py --quick    # a tenth of the weights in the two large ones; half a minute

Both sides start from the same Flower records in memory, one set a case, and end with an ArrayRecord. Every
contender runs once to warm up (numba compiles then), then all take turns, in an order drawn anew each
time. Ratios are of the medians and of the best turns. Small models are folded by the compiled loops, as they
are in a process that has folded enough of them. "read once" touches every byte of the updates with as many
threads as `ExactMean` uses, and does nothing else.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.metadata import version

import numpy as np
from flwr.app import ArrayRecord, MetricRecord, RecordDict
from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords

from lightning_fl_ext.aggregation import ExactMean, exact_mean, kernels
from lightning_fl_ext.results import Arrays
from lightning_fl_ext.server.strategies.exact_fedavg import gather
from lightning_fl_ext.wire.records import from_record, to_record, written_record
from lightning_fl_ext.wire.typed_records import records_of

WEIGHT = "num-examples"


def make_records(parameters: int, clients: int) -> list[RecordDict]:
    """Return replies of a model of eight float32 layers, made one client at a time."""
    generator = np.random.default_rng(0)
    shape = (parameters // 8,)
    return [
        RecordDict(
            {
                "arrays": to_record(
                    {f"layer{i}": generator.standard_normal(shape, dtype=np.float32) for i in range(8)}
                ),
                "metrics": MetricRecord({WEIGHT: int(generator.integers(100, 1000))}),
            }
        )
        for _ in range(clients)
    ]


def updates_of(records: list[RecordDict]) -> Iterator[tuple[Arrays, int]]:
    for record in records:
        (arrays,) = records_of(record, ArrayRecord).values()
        (metrics,) = records_of(record, MetricRecord).values()
        yield from_record(arrays), int(metrics[WEIGHT])


def at_once(records: list[RecordDict], threads: int) -> ArrayRecord:
    """Do what `ExactFedAvg` does with a list of replies."""
    like = from_record(records[0].array_records["arrays"])
    return written_record(like, lambda out: exact_mean(like, updates_of(records), threads=threads, out=out))


def streamed(records: list[RecordDict], kept: ExactMean) -> ArrayRecord:
    """Do what `ExactFedAvg` does with replies that come one by one, in the memory of the round before."""
    like = from_record(records[0].array_records["arrays"])
    mean = kept.reset(like)
    for several in gather(updates_of(records)):
        mean.add_many(several)
    return written_record(like, mean.result)


def exact(records: list[RecordDict], at_once: int, threads: int) -> ExactMean:
    """Fold the records, ``at_once`` in a pass."""
    mean = ExactMean(from_record(next(iter(records[0].array_records.values()))), threads=threads)
    for start in range(0, len(records), at_once):
        mean.add_many(updates_of(records[start : start + at_once]))
    return mean


def exact_record(records: list[RecordDict], at_once: int, threads: int) -> ArrayRecord:
    like = from_record(records[0].array_records["arrays"])
    return written_record(like, exact(records, at_once, threads).result)


def exact_record_numpy(records: list[RecordDict], at_once: int, threads: int) -> ArrayRecord:
    before = kernels.FUSED_FROM, kernels.COMPILE_AFTER
    kernels.FUSED_FROM = kernels.COMPILE_AFTER = 2**62
    try:
        return exact_record(records, at_once, threads)
    finally:
        kernels.FUSED_FROM, kernels.COMPILE_AFTER = before


def read_once(records: list[RecordDict], threads: int) -> None:
    words = [
        np.frombuffer(array.data, np.uint64, offset=128)
        for record in records
        for array in record.array_records["arrays"].values()
    ]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(np.bitwise_xor.reduce, words))


def seconds(work: Callable[[], object]) -> tuple[float, float]:
    """Return the wall time and the processor time of all threads."""
    wall, processor = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - processor


def compare(parameters: int, clients: int, repeats: int, threads: int) -> None:
    """Print the table of one case."""
    records = make_records(parameters, clients)
    contenders: dict[str, Callable[[], object]] = {
        "read once": partial(read_once, records, threads),
        "Flower aggregate_arrayrecords": partial(aggregate_arrayrecords, records, WEIGHT),
        "exact_mean, a list of replies": partial(at_once, records, threads),
        "exact_mean, 1 thread": partial(at_once, records, 1),
        "as replies come, streamed": partial(streamed, records, ExactMean({})),
        "ExactMean, four a pass": partial(exact_record, records, 4, threads),
        "ExactMean, four a pass, numpy": partial(exact_record_numpy, records, 4, threads),
    }
    for work in contenders.values():
        work()
    turns: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    for turn in range(repeats):
        for name in random.Random(turn).sample(list(contenders), len(contenders)):
            turns[name].append(seconds(contenders[name]))

    print(f"\n{parameters / 1e6:g} million float32 x {clients} clients, {threads} threads")
    print(
        f"{'':34}{'median ms':>10}{'best':>8}{'cpu ms':>8}{'x Flower':>10}{'best':>7}{'cpu':>7}{'x read':>8}"
    )
    middle = {
        name: [statistics.median(column) for column in zip(*t, strict=True)] for name, t in turns.items()
    }
    best = {name: min(wall for wall, _ in t) for name, t in turns.items()}
    flower = "Flower aggregate_arrayrecords"
    for name, (wall, processor) in middle.items():
        print(
            f"{name:34}{wall * 1e3:10.1f}{best[name] * 1e3:8.1f}{processor * 1e3:8.1f}"
            f"{middle[flower][0] / wall:10.2f}{best[flower] / best[name]:7.2f}"
            f"{middle[flower][1] / processor:7.2f}{wall / middle['read once'][0]:8.1f}"
        )
    mean = exact(records, 4, threads)
    other = exact(records[: clients // 2], 4, threads)
    parts = {
        "fold four": lambda: mean.add_many(updates_of(records[:4])),
        "result": mean.result,
        "merge": lambda: other.merge(mean),
    }
    for name, work in parts.items():
        wall, processor = min(seconds(work) for _ in range(repeats))
        print(f"  {name:32}{wall * 1e3:8.0f}{processor * 1e3:8.0f}{wall / parameters * 1e9:17.3f}  a param")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="smaller cases, fewer repeats")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="threads for ExactMean")
    arguments = parser.parse_args()
    print(f"numpy {np.__version__}, flwr {version('flwr')}")
    scale, repeats = (10, 3) if arguments.quick else (1, 7)
    compare(20_000_000 // scale, 12, repeats, arguments.threads)
    compare(1_000_000 // scale, 100, repeats, arguments.threads)
    kernels.COMPILE_AFTER = 0
    compare(100_000, 100, repeats, arguments.threads)
    compare(10_000, 1000, repeats, arguments.threads)


if __name__ == "__main__":
    main()
