"""A disk that fills up."""

import errno
import os

_fsync = os.fsync


def full_after(writes):
    """Give an `os.fsync` that works so many times, and then finds no space left."""
    left = writes

    def fsync(handle):
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        _fsync(handle)

    return fsync
