"""Which rounds a run's loggers have, so that one that only appends gets none of them twice."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from lightning_fl_ext.files import write_file
from lightning_fl_ext.text import shown

log = logging.getLogger(__name__)

LOGGED = "logged-rounds.json"


class LoggedRounds:
    """Notes, before a logger gets a round, that it does: a run that goes on asks here.

    A logger is known by its class, name and version, and by where it saves. A new version, such as a
    ``CSVLogger`` or MLflow run begins by default, gets all rounds of the run from the first. A ``CSVLogger``
    that is given the version of before removes the old file as it begins, and gets all of them as well.

    No note silences a logger unseen: one of a round that the run does not have is none, and what a logger is
    not given though the checkpoint lies before it is said.

    Args:
        folder: The run's folder, where the notes are kept; None to keep none.
        run_id: Tells the run. Notes of another one do not count.
        begun: The round that the run goes on from.
        rounds: How many it has in all.
    """

    def __init__(
        self, folder: Path | None = None, run_id: str = "", begun: int = 0, rounds: int = 2**31
    ) -> None:
        self._path = None if folder is None else folder / LOGGED
        self._run_id = run_id
        self._begun = begun
        self._last = _read(self._path, run_id, max(begun, rounds))
        self._known: dict[int, str] = {}

    def take(self, logger: Any, server_round: int) -> bool:
        """Tell whether a logger is to get a round, and note that it has it.

        Args:
            logger: One of Lightning's.
            server_round: The round; 0 for the model before the first.
        """
        if self._path is None:
            return True
        name = self._known.get(id(logger)) or self._begin(logger)
        if server_round <= self._last.get(name, -1):
            return False
        self._last[name] = server_round
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_file(self._path, json.dumps({"run_id": self._run_id, "last": self._last}).encode())
        return True

    def _begin(self, logger: Any) -> str:
        starts_over = _is_csv(logger) and getattr(logger, "_experiment", None) is None
        getattr(logger, "experiment", None)  # until then some do not know their version
        kind = f"{type(logger).__module__}.{type(logger).__qualname__}"
        about = (getattr(logger, name, None) for name in ("save_dir", "name", "version"))
        known = self._known[id(logger)] = json.dumps([kind, *map(str, about)])
        if starts_over:
            self._last.pop(known, None)
        elif (last := self._last.get(known, -1)) > self._begun + 1:  # one is logged before its checkpoint
            log.warning(
                "%s has rounds up to %d already, as `%s` notes, and gets none of them again, though the run"
                " goes on after round %d. To have it given all, remove that file.",
                *(type(logger).__name__, last, self._path, self._begun),
            )
        return known


def _is_csv(logger: Any) -> bool:
    return any(base.__name__ == "CSVLogger" for base in type(logger).__mro__)


def _read(path: Path | None, run_id: str, rounds: int) -> dict[str, int]:
    """Read the notes of a run; none if there is no such file, or it is of another run or damaged."""
    if path is None or not path.exists():
        return {}
    try:
        noted = json.loads(path.read_bytes())
        if noted["run_id"] != run_id:
            return {}
        last = dict(noted["last"])
        if not all(type(number) is int and 0 <= number <= rounds for number in last.values()):
            raise ValueError(f"notes of rounds that a run of {rounds} does not have")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        why = shown(f"{type(error).__name__}: {error}")
        log.warning("`%s` is damaged, and loggers are given all rounds: %s", path, why)
        return {}
    return last
