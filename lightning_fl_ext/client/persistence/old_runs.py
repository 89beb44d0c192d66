"""States of runs that are long over."""

from __future__ import annotations

import logging
import os
import re
from contextlib import suppress
from pathlib import Path

from lightning_fl_ext.files import remove_folder
from lightning_fl_ext.locks import hold

log = logging.getLogger(__name__)

KEPT_RUNS = 20
"""Runs whose states a client keeps, whatever their age."""

KEPT_DAYS = 7
"""Days for which it keeps those of any run."""

_OF_A_RUN = re.compile(r"[A-Za-z0-9_-]{0,40}-[0-9a-f]{12}$")


def let_go_of_old_runs(current: Path) -> None:
    """Remove a client's states of all but the newest runs, as another run begins.

    Those go that are not among the `KEPT_RUNS` written to last, have not been written to for `KEPT_DAYS`, and
    are not at work. What cannot be removed stays.

    Args:
        current: The folder of the run that begins, just written to, beside those of the others.
    """
    try:
        now = current.stat().st_mtime  # just written to, by the clock that wrote the others
        found = [(path.stat().st_mtime, path) for path in _runs_beside(current)]
    except OSError:
        return
    older = sorted(found, reverse=True)[KEPT_RUNS - 1 :]
    limit = now - KEPT_DAYS * 86400
    for written, path in older:
        if written < limit:
            with suppress(OSError):
                _remove_unless_at_work(path)


def _runs_beside(current: Path) -> list[Path]:
    beside = (path for path in current.parent.iterdir() if path != current)
    return [p for p in beside if _OF_A_RUN.match(p.name) and p.is_dir() and not p.is_symlink()]


def _remove_unless_at_work(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        if hold(descriptor, path):
            remove_folder(path)
            log.info("removed the client's state of an earlier run, `%s`", path)
    finally:
        os.close(descriptor)
