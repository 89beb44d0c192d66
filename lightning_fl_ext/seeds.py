"""Seeds for everything random: a function of (run seed, round, client, purpose) and nothing else."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np


def derive_seed(run_seed: int, server_round: int, client_id: str, purpose: str) -> int:
    """Derive the seed for one purpose in one round on one client.

    Args:
        run_seed: Seed of the whole run, not negative.
        server_round: Round, from 1; 0 before the first.
        client_id: The client's declared id; ``""`` for the server.
        purpose: What is drawn, such as ``"fit"`` or ``"sample"``.

    Returns:
        An integer in [0, 2^32), which every seeding function takes.

    Example:
        >>> derive_seed(7, 1, "site-a", "fit")
        407853655
        >>> derive_seed(7, 1, "site-b", "fit")
        1547123221
    """
    words = [_hash(client_id), _hash(purpose)]
    return int(np.random.SeedSequence((run_seed, server_round, *words)).generate_state(1)[0])


@contextmanager
def seeded(seed: int, *, torch: bool = True) -> Iterator[None]:
    """Seed Python's, numpy's and torch's global random state, and put it back as it was at the end.

    Args:
        seed: In [0, 2^32).
        torch: Whether to seed torch too (on every device it can see).

    Example:
        >>> with seeded(0, torch=False):
        ...     first = random.random()
        >>> with seeded(0, torch=False):
        ...     second = random.random()
        >>> first == second
        True
    """
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    try:
        if torch:
            with _torch_seeded(seed):
                yield
        else:
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002


@contextmanager
def seeded_ranks(seed: int) -> Iterator[None]:
    """Have Lightning seed the processes that it starts, and the shuffles that they share, with this seed.

    It takes the seed from an environment variable, which is put back at the end.

    Args:
        seed: In [0, 2^32).

    Example:
        >>> with seeded_ranks(3):
        ...     os.environ["PL_GLOBAL_SEED"]
        '3'
    """
    name = "PL_GLOBAL_SEED"
    before = os.environ.get(name)
    os.environ[name] = str(seed)
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = before


@contextmanager
def _torch_seeded(seed: int) -> Iterator[None]:
    import torch

    # Devices that are not at work yet stay so: the fit may be in other processes.
    at_work = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    before = torch.initial_seed()
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if at_work else ()):
            torch.manual_seed(seed)  # of devices that start later, too
            yield
    finally:
        if not at_work:
            torch.cuda.manual_seed_all(before)


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")
