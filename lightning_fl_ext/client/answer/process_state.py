"""What a fit borrows from its process and gives back: torch's threads, and memory."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch


@contextmanager
def threads(number: int | None) -> Iterator[None]:
    """Have torch use this many threads, and then as many as before."""
    if number is None:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def garbage_collected() -> Iterator[None]:
    """Free the reference cycle that a finished Trainer and module form."""
    _freeze_imports()
    try:
        yield
    finally:
        gc.collect()


@cache
def _freeze_imports() -> None:
    """Take what is alive before the first fit, imports mostly, out of the collector.

    Collecting after each fit then costs next to nothing. Counting what is frozen costs milliseconds: once.
    """
    if not gc.get_freeze_count():
        gc.collect()
        gc.freeze()
