"""Server optimizers beside the exact mean: accuracy by round on digits, two shards of labels for each client.

Run it with ``python benchmarks/server_optimizers.py``; it takes a few minutes. The net, the digits and the
clients' fits are those of `robust.py`. Every strategy sends the same bytes both ways, so a round is a number
of bytes too.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable

import numpy as np
import torch
from flwr.serverapp.strategy import Strategy
from robust import OPTIONS, accuracies

from lightning_fl_ext import ExactFedAdagrad, ExactFedAdam, ExactFedAvg, ExactFedAvgM, ExactFedYogi

STRATEGIES: dict[str, Callable[[], Strategy]] = {
    "ExactFedAvg()": lambda: ExactFedAvg(**OPTIONS),
    "ExactFedAvgM(1.0, 0.5)": lambda: ExactFedAvgM(1.0, 0.5, **OPTIONS),
    "ExactFedAdam(0.03)": lambda: ExactFedAdam(0.03, **OPTIONS),
    "ExactFedYogi(0.03)": lambda: ExactFedYogi(0.03, **OPTIONS),
    "ExactFedAdagrad(0.1, tau=0.01)": lambda: ExactFedAdagrad(0.1, tau=0.01, **OPTIONS),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, nargs="+", default=[2, 5, 10, 20, 30], help="rounds to tell of")
    parser.add_argument("--seeds", type=int, default=3, help="runs of which mean and deviation are told")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    print("| strategy | " + " | ".join(f"round {r}" for r in arguments.rounds) + " |")
    print("|---|" + "---|" * len(arguments.rounds))
    for name, make in STRATEGIES.items():
        curves = 100 * np.array(
            [accuracies(make(), max(arguments.rounds), "skewed", 0, seed) for seed in range(arguments.seeds)]
        )
        told = [f"{curves[:, r].mean():.0f} ± {curves[:, r].std():.0f}" for r in arguments.rounds]
        print(f"| `{name}` | " + " | ".join(told) + " |", flush=True)


if __name__ == "__main__":
    main()
