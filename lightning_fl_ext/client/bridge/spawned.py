"""Leaving the process group of a fit: what a process that was started for it does at its end."""

from __future__ import annotations

import atexit
import multiprocessing
import sys

from torch import distributed


def leave_group_at_exit() -> None:
    """Have a process that another has started destroy its process group before the interpreter ends.

    Lightning does not, and gloo's threads then abort the process now and then on its way out, after all work
    is done: the fit would be lost.
    """
    if multiprocessing.parent_process() is not None:
        atexit.unregister(leave_group)  # once, however many fits
        atexit.register(leave_group)


def leave_group() -> None:
    """Destroy the process group, if this process is in one."""
    deepspeed = sys.modules.get("deepspeed.comm")
    if deepspeed is not None and deepspeed.is_initialized():
        deepspeed.destroy_process_group()  # and what it notes of it, which another fit would stumble over
    elif distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
