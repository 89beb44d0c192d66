"""One run at a time in a folder."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lightning_fl_ext.errors import LightningFLError
from lightning_fl_ext.locks import hold

log = logging.getLogger(__name__)

_WAIT_SECONDS = 120.0
_POLL_SECONDS = 0.2


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Hold a folder, so that no second run writes checkpoints and ledger there at the same time.

    A server that has lost its SuperLink may live on for a while, when the run that goes on is already
    started: it is waited for. The folder is free when its holder has ended, in whichever way; nothing lies
    there that would have to be cleaned up. A file system without locks is used as it is.

    Args:
        folder: Made if missing.

    Raises:
        LightningFLError: Another run still holds it after two minutes.

    Example:
        ``with folder_lock(trainer.default_root_dir): ...``
    """
    descriptor = None
    with suppress(OSError):  # who writes there says what is wrong
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
    if descriptor is None:
        yield
        return
    try:
        start, warned = time.monotonic(), False
        while not hold(descriptor, folder):
            if time.monotonic() - start > _WAIT_SECONDS:
                raise LightningFLError(
                    f"another run is at work in `{folder}`, and has not ended within {_WAIT_SECONDS:g} s."
                    " Stop it, or choose another `default_root_dir`."
                )
            if not warned:
                log.warning("another run is at work in `%s`: waiting for it to end", folder)
                warned = True
            time.sleep(_POLL_SECONDS)
        yield
    finally:
        os.close(descriptor)
