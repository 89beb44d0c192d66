"""What a process that Lightning has spawned for a fit does at its end."""

from __future__ import annotations

import atexit
import multiprocessing

from torch import distributed


def leave_group_at_exit() -> None:
    """Have a process that another has started destroy its process group before the interpreter ends.

    Lightning does not, and gloo's threads then abort the process now and then on its way out, after all work
    is done: the fit would be lost.
    """
    if multiprocessing.parent_process() is not None:
        atexit.unregister(_leave_group)  # once, however many fits
        atexit.register(_leave_group)


def _leave_group() -> None:
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
