"""Federated probabilistic masks on digits: accuracy against the bytes of the messages.

    python benchmarks/masks.py            # three seeds, both partitions: tables and plot (an hour)
    python benchmarks/masks.py --quick    # one seed, IID, 4 rounds (about a minute)

A convolutional net of 151 072 weights (conv 32-64, fc 128, no biases), 10 clients in 25 rounds, all of
them or, with masks, five drawn at random in each; 3 local epochs of batches of 32, Adam at 0.1 on the scores,
scikit-learn's digits: 1437 to train, 360 to test. IID shares, or two shards of the examples sorted by label
for each client. Every finished run is kept in `--out`, so the command can be stopped and goes on where it
was.

Compared: masks dithered, stratified, and by minimal random coding, θ coming down as the sum of flips where
masks are dithered, and as the masks themselves where they are random; θ in float32; FedAvg of the weights in
float32, with Adam at 0.001. Packed masks are the dithered ones: their first rounds are run as well, the
models' digests must be equal, and a packed message has the same length in every round (with `--quick`, all
rounds). Bits are per parameter and client, of all that Flower's messages hold: arrays with their headers,
names, ids, the config, the count of examples and one metric, the training loss.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mask_federation import CLIENTS, PARTITIONS, SIZE, UPLINKS, Log, run

Runs = dict[tuple[str, str, float, int], Log]
"""By way up, partition, fraction of the clients in a round, and seed."""

FRACTIONS = {"dithered": (1.0, 0.5), "dithered, stratified": (1.0,), "random": (1.0, 0.5)}
"""Of the clients in a round; all, for what is not named."""


def rows(runs: Runs) -> Iterator[tuple[str, str, float, list[Log]]]:
    """One row for each partition, fraction and code: code, partition, fraction, the runs of all seeds."""
    for partition in PARTITIONS:
        for fraction in (1.0, 0.5):
            for uplink in UPLINKS:
                asked = (uplink, partition, fraction)
                logs = [log for key, log in runs.items() if key[:3] == asked]
                for code in sorted(logs[0][0]["up"], reverse=True) if logs else ():
                    yield code, partition, fraction, logs


def bits(logs: list[Log], way: str, code: str | None = None) -> Any:
    """Bits per parameter, of shape (seeds, rounds)."""
    return np.array([[r[way][code] if code else r[way] for r in log] for log in logs]) * 8 / SIZE


def print_tables(runs: Runs) -> None:
    """Print one line for each code, and one for every round of the dithered one."""
    print("\nMean over the seeds [range]: accuracy of the mean mask in the last round, over the last five,")
    print(
        "and of sampled masks; bits per parameter up, down, both ways together, down in the largest message,"
    )
    print(
        "down if each message stood alone; MB in all; progress of masks from the server's θ to the client's"
    )
    print("(1: unbiased); bytes beside the arrays")
    heads = f"{'accuracy':22}{'five':7}{'sampled':9}{'bits up':25}{'down':23}{'both':25}most   alone   MB all"
    heads += "  progress  up  down"
    print(f"{'partition':10}{'up':20}  part seeds  {heads}")
    for code, partition, fraction, logs in rows(runs):
        accuracy, sampled = ([log[-1][name] for log in logs] for name in ("accuracy", "sampled"))
        five = [r["accuracy"] for log in logs for r in log[-5:]]
        up, down = bits(logs, "up", code), bits(logs, "down")
        most, alone = bits(logs, "most"), bits(logs, "alone")
        megabytes = fraction * CLIENTS * (up + down).sum(axis=1).mean() * SIZE / 8e6
        progress, *besides = (mean_of(logs, name) for name in ("progress", "besides_up", "besides_down"))
        print(
            f"{partition:10}{code:20} {fraction:5} {len(logs):5}  {spread(accuracy, 3)}{np.mean(five):5.3f}"
            f"{np.mean(sampled):7.3f}  {spread(up.mean(axis=1), 4)}{spread(down.mean(axis=1), 3)}"
            f"{spread((up + down).mean(axis=1), 3)}{most.max():5.2f}{alone.mean():7.2f}{megabytes:9.1f}"
            f"{progress:9.3f}{besides[0]:6.0f}{besides[1]:6.0f}"
        )
    print("\nMasks by round: bits up, bits down, down if it stood alone, share of a client's scores that its")
    print("training did not move, accuracy of the mean mask")
    for code, partition, fraction, logs in rows(runs):
        for i in range(len(logs[0]) if fraction == 1 and code in ("dithered", "random") else 0):
            up, down, alone = (bits(logs, *way)[:, i].mean() for way in (("up", code), ("down",), ("alone",)))
            still, accuracy = (np.mean([log[i][name] for log in logs]) for name in ("still", "accuracy"))
            figures = f"{up:8.4f}{down:8.3f}{alone:8.3f}{still:8.3f}{accuracy:8.3f}"
            print(f"{partition:10}{code:10}round {i + 1:2}  {figures}")


def mean_of(logs: list[Log], name: str) -> float:
    """The mean over seeds and rounds."""
    return float(np.mean([r[name] for log in logs for r in log]))


def spread(values: Any, digits: int) -> str:
    """The mean and the range."""
    low, mean, high = np.min(values), np.mean(values), np.max(values)
    return f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]  "


def plot(runs: Runs, path: Path) -> None:
    """Plot accuracy against all bytes sent so far, averaged over the seeds."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
    for axis, where in zip(axes, PARTITIONS, strict=True):
        for code, partition, fraction, logs in rows(runs):
            if partition == where and fraction == 1:
                sent = (bits(logs, "up", code) + bits(logs, "down")).mean(axis=0) * CLIENTS * SIZE / 8e6
                accuracy = np.mean([[r["accuracy"] for r in log] for log in logs], axis=0)
                axis.plot(np.cumsum(sent), accuracy, label=code, linewidth=1.3)
        axis.set(xscale="log", xlabel="MB sent by all, up and down", title=where, ylim=(0.3, 1))
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("test accuracy (mean mask)")
    axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=120)
    print(f"\nplot: {path}")


def main() -> None:
    """Run what is not yet kept, and show everything."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one seed, IID, 4 rounds")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--uplinks", nargs="+", default=list(UPLINKS), choices=list(UPLINKS))
    parser.add_argument("--partitions", nargs="+", default=list(PARTITIONS), choices=PARTITIONS)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--out", type=Path, default=Path("runs/masks"))
    parser.add_argument("--kept", action="store_true", help="run nothing: show the runs that are kept")
    args = parser.parse_args()
    if args.quick:
        args.seeds, args.partitions, args.rounds, args.out = [0], ["IID"], 4, args.out / "quick"
    args.out.mkdir(parents=True, exist_ok=True)
    logging.getLogger("flwr").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    runs: Runs = {}
    cases = [
        (uplink, partition, fraction, seed)
        for fraction in (1.0, 0.5)
        for seed in args.seeds
        for uplink in args.uplinks
        for partition in args.partitions
        if fraction in FRACTIONS.get(uplink, (1.0,))
    ]
    for case in cases:
        uplink, partition, fraction, seed = case
        path = args.out / f"{uplink}_{partition}_{fraction}_{seed}_{args.rounds}.json"
        if not path.exists() and not args.kept:
            start = time.perf_counter()
            log = run(uplink, partition, seed, args.rounds, 4 if args.quick else 2, fraction)
            path.write_text(json.dumps(log))
            print(
                f"{uplink}, {partition}, {fraction}, {seed}: {time.perf_counter() - start:.0f} s", flush=True
            )
        if path.exists():
            runs[case] = json.loads(path.read_text())
    print_tables(runs)
    plot(runs, args.out / "masks.png")


if __name__ == "__main__":
    main()
