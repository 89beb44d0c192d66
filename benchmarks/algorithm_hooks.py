"""What clients' halves of algorithms cost in a fit, on the 4 MB model of benchmarks/bridge.py.

    python benchmarks/algorithm_hooks.py      # about a minute on an idle core

Processor time on one thread. In each turn every half has one fit and two fits have none, in an order drawn
anew; a half's ratio is over the mean of its turn's two. The half that does nothing is the control: it should
read 1.00.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import random
import time
from collections.abc import Callable
from typing import Any

import lightning.pytorch as L
import numpy as np
import torch
from bridge import QUIET, Lit, loader, quieten

from lightning_fl_ext import ClientAlgorithm
from lightning_fl_ext.client.algorithms.drift import ControlVariates, DynamicRegularizer, NormalizedSteps
from lightning_fl_ext.client.algorithms.hooks import AlgorithmHooks
from lightning_fl_ext.client.algorithms.proximal import ProximalTerm

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3

HALVES: dict[str, Callable[[], ClientAlgorithm]] = {
    "FedProx": lambda: ProximalTerm({"proximal-mu": 0.1}),
    "SCAFFOLD": lambda: ControlVariates({}),
    "FedNova": lambda: NormalizedSteps({}),
    "FedDyn": lambda: DynamicRegularizer({"feddyn-alpha": 0.1}),
    "a half that does nothing": lambda: ClientAlgorithm({}),
}


class Ready(AlgorithmHooks):
    """Hooks with control variates at hand, as a server sends them."""

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        needed = self.algorithm.name == "scaffold"
        sent = {name: torch.zeros_like(p) for name, p in pl_module.named_parameters()} if needed else {}
        self.start(trainer, pl_module, received=sent)


def keep_freed_memory() -> None:
    """Have glibc keep what is freed.

    By default it gives the gradients' room back to the system after steps of some fits and not of others,
    as the fits before have left the heap. To take it anew in each step is up to a tenth of a fit.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another libc
        libc = ctypes.CDLL(None)
        libc.mallopt(M_TRIM_THRESHOLD, 2**30)
        libc.mallopt(M_MMAP_THRESHOLD, 2**25)


def seconds(half: ClientAlgorithm | None, batches: int) -> float:
    """Fit with a half or without, and give the processor time."""
    trainer = L.Trainer(**QUIET, max_epochs=1, callbacks=[Ready(half)] if half else [])
    module, data = Lit(), loader(batches)
    gc.collect()
    start = time.process_time()
    trainer.fit(module, data)
    return time.process_time() - start


def cost(turns: int, batches: int) -> None:
    seconds(None, batches)
    ratios: dict[str, list[float]] = {name: [] for name in HALVES}
    order = [*HALVES, "without", "without again"]
    for _ in range(turns):
        random.shuffle(order)
        took = {name: seconds(HALVES[name]() if name in HALVES else None, batches) for name in order}
        without = (took["without"] + took["without again"]) / 2
        for name in HALVES:
            ratios[name].append(took[name] / without)
    print(f"fit of {batches} batches with a half, over the same without: median of {turns} (quartiles)")
    for name, values in ratios.items():
        low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
        print(f"  {name:25} {middle:5.2f} x  ({low:.2f}-{high:.2f})")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--batches", type=int, default=50)
    chosen = parser.parse_args()
    quieten()
    keep_freed_memory()
    cost(chosen.turns, chosen.batches)
