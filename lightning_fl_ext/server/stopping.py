"""SIGTERM ends a fit as Ctrl-C does: callbacks and loggers are told."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

TERMINATED = 128 + signal.SIGTERM
"""Exit code of a process that SIGTERM ended."""


@contextmanager
def ending_on_sigterm() -> Iterator[None]:
    """Raise ``SystemExit`` where SIGTERM arrives, instead of ending the process on the spot.

    The first one raises; a second one ends the process at once. A handler that is there already (Flower's
    own processes have one, which raises too) stays, and so does everything outside the main thread.

    Example:
        >>> with ending_on_sigterm():
        ...     signal.raise_signal(signal.SIGTERM)
        Traceback (most recent call last):
        ...
        SystemExit: 143
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _raise)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _raise(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    raise SystemExit(TERMINATED)
