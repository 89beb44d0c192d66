"""Which rounds a run's loggers have, so that one that only appends gets none of them twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lightning_fl_ext.files import write_file

LOGGED = "logged-rounds.json"


class LoggedRounds:
    """Notes, before a logger gets a round, that it does: a run that goes on asks here.

    A logger is known by its class, name and version, and by where it saves. A new version, such as a
    ``CSVLogger`` or MLflow run begins by default, gets all rounds of the run from the first. A ``CSVLogger``
    that is given the version of before removes the old file as it begins, and gets all of them as well.

    Args:
        folder: The run's folder, where the notes are kept; None to keep none.
        run_id: Tells the run. Notes of another one do not count.
    """

    def __init__(self, folder: Path | None = None, run_id: str = "") -> None:
        self._path = None if folder is None else folder / LOGGED
        self._run_id = run_id
        self._last = _read(self._path, run_id)
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
        return known


def _is_csv(logger: Any) -> bool:
    return any(base.__name__ == "CSVLogger" for base in type(logger).__mro__)


def _read(path: Path | None, run_id: str) -> dict[str, int]:
    try:
        noted = json.loads(path.read_bytes()) if path is not None else {}
        if noted.get("run_id") == run_id:
            return {str(name): int(last) for name, last in noted["last"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass  # not there, or not of this package: loggers get all rounds
    return {}
