"""Ends processes, and all that they have started."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress

POLL = 0.02
"""Seconds between two looks at processes."""


def end_all(started: Sequence[subprocess.Popen[bytes]], grace: float = 0.0) -> None:
    """End processes that were started in sessions of their own.

    Args:
        started: The processes.
        grace: Seconds that they have to end by themselves, when they are asked to, before they are killed.
    """
    if grace:
        for process in started:
            if process.poll() is None:
                process.terminate()
        end = time.monotonic() + grace
        while time.monotonic() < end and any(process.poll() is None for process in started):
            time.sleep(POLL)
    for process in started:
        with suppress(ProcessLookupError, PermissionError):  # all gone
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
