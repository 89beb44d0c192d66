"""Which of a client's processes this one is."""

from __future__ import annotations

import os

_inside = False


def enter() -> None:
    """Note that this process is one of those that a launcher started."""
    global _inside
    _inside = True


def is_inside() -> bool:
    """Tell whether this process is one of those that a launcher started."""
    return _inside


def rank() -> int:
    """Give this process's rank, by what torch's launchers or SLURM say; 0 if nobody says."""
    return int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or 0)
