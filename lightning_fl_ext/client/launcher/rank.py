"""Which of a client's processes this one is."""

from __future__ import annotations

import os

from lightning_fl_ext.engines.local import forbid_federations

_inside = False


def enter() -> None:
    """Note that this process is one of those that a launcher started, and have it start no federation."""
    global _inside
    _inside = True
    forbid_federations(
        "each process of a client imports the file that holds its ClientApp, and that file starts a"
        ' federation when it is imported. Put what starts it under `if __name__ == "__main__":`.'
    )


def is_inside() -> bool:
    """Tell whether this process is one of those that a launcher started."""
    return _inside


def rank() -> int:
    """Give this process's rank, by what torch's launchers or SLURM say; 0 if nobody says."""
    return int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or 0)
