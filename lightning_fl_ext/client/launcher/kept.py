"""Processes of a client that stay for the messages after the first."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lightning_fl_ext.client.launcher.ending import end_all
from lightning_fl_ext.client.launcher.launchers import Processes

STAY = (sys.executable, "-m", "lightning_fl_ext.client.worker", "--stay")
"""What each of them runs, with MODULE:NAME after it."""


class KeptProcesses(Processes):
    """Starts an interpreter for each device of this machine, and keeps them for the messages to come.

    Only the first message waits for them to start. They end with the client's process, after a failure, and
    where another number of them is needed. Until then they hold memory, on their devices too. Each process
    that gets a copy of this launcher, such as an actor of Flower's simulation, has its own.

    Example:
        ``client_app(LitDigits, data, {"devices": 4}, launcher=KeptProcesses())``
    """

    def __init__(self) -> None:
        self._key = uuid.uuid4().hex
        self._lock = threading.Lock()
        self._name = ""
        self._started: list[subprocess.Popen[bytes]] = []

    def __reduce__(self) -> Any:
        return _of_this_process, (type(self), self._key)

    @contextmanager
    def at_work(
        self, name: str, count: int, given: Path, out: Path, **options: Any
    ) -> Iterator[Sequence[subprocess.Popen[bytes]]]:
        """Have them answer a message, one at a time; after an exception they are ended.

        Args:
            name: Of the app, ``MODULE:NAME``.
            count: How many are needed.
            given: The file with the message.
            out: The folder where each leaves a file ``done-RANK``.
            **options: For ``subprocess.Popen``, if they are not there yet.

        Yields:
            The processes.
        """
        with self._lock:
            gone = any(process.poll() is not None for process in self._started)
            if gone or self._name != name or len(self._started) != count:
                self.close()
                self._started = self.start([*STAY, name], count, **options, stdin=subprocess.PIPE)
                self._name = name
            try:
                told = json.dumps([self.open_store(), str(given), str(out)]).encode() + b"\n"
                for process in self._started:
                    assert process.stdin is not None
                    process.stdin.write(told)
                    process.stdin.flush()
                yield self._started
            except BaseException:
                self.close()
                raise

    def close(self) -> None:
        """End them. The next message starts others."""
        end_all(self._started)
        for process in self._started:
            assert process.stdin is not None
            with suppress(OSError):  # what it was told last is not read
                process.stdin.close()
        self._started = []


_here: dict[str, KeptProcesses] = {}
"""What copies of a launcher, one with every message, have in common in this process."""


def _of_this_process(kind: type[KeptProcesses], key: str) -> KeptProcesses:
    if key not in _here:
        _here[key] = kind()
    return _here[key]
