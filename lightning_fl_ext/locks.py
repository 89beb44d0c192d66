"""A folder that one process holds."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

log = logging.getLogger(__name__)


def hold(descriptor: int, folder: Path) -> bool:
    """Lock a folder, and tell whether it is nobody else's.

    It is free again when the descriptor is closed, at the latest when the process has ended, in whichever
    way. A file system without locks, and Windows, keep nobody out.

    Args:
        descriptor: Of the folder, open.
        folder: To be named in the log.
    """
    if sys.platform == "win32":
        return True
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:  # a network file system without locks
        log.info("cannot keep other runs out of `%s`: %s", folder, error)
    return True
