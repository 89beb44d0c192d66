"""A process with a log of its own, stopped together with everything that it started."""

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil

_MARK = "LIGHTNING_FL_EXT_STARTED_IN"
"""Environment variable that a process hands down to all that it starts, detached or not."""


class Process:
    """Runs one command in a folder of its own.

    What it writes goes to ``<folder>/log``, which grows over restarts. ``stop`` and ``kill`` also end what
    the command started, even what has been detached from it: all of it inherits a mark.

    Args:
        command: Program and arguments.
        folder: Made if missing; also the process's working directory.
        env: The process's environment.
        is_ready: Whether the process does its work by now; asked until it does.
    """

    def __init__(
        self,
        command: Sequence[str],
        folder: Path,
        env: Mapping[str, str],
        is_ready: Callable[["Process"], bool] = lambda process: True,
    ) -> None:
        self.command = [str(part) for part in command]
        self.folder = folder
        self._env = {**env, _MARK: str(folder)}
        self._is_ready = is_ready
        self._running: subprocess.Popen[bytes] | None = None
        self._start = 0
        folder.mkdir(parents=True, exist_ok=True)
        self._log = folder / "log"
        self._log.touch()

    @property
    def log(self) -> str:
        """What it has written since it was last started."""
        return self._log.read_bytes()[self._start :].decode(errors="replace")

    @property
    def is_running(self) -> bool:
        """Whether it has been started and has not ended."""
        return self._running is not None and self._running.poll() is None

    def start(self, timeout: float = 60.0) -> None:
        """Start it, and wait until it is ready; see :meth:`launch` and :meth:`wait_until_ready`."""
        self.launch()
        self.wait_until_ready(timeout)

    def launch(self) -> None:
        """Start it, and wait for nothing."""
        assert not self.is_running, f"{self.command[0]} is already running"
        self._start = self._log.stat().st_size
        with self._log.open("ab") as log:
            self._running = subprocess.Popen(
                self.command,
                cwd=self.folder,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait_until_ready(self, timeout: float = 60.0) -> None:
        """Wait until it is ready.

        Raises:
            RuntimeError: It ended, or was not ready in time; it is stopped then. The message holds its log.
        """
        deadline = time.monotonic() + timeout
        while not self._is_ready(self):
            if not self.is_running or time.monotonic() > deadline:
                how = "was not ready in time" if self.is_running else "ended before it was ready"
                self.kill()
                raise RuntimeError(f"`{' '.join(self.command)}` {how}:\n{self.log}")
            time.sleep(0.1)

    def wait(self, timeout: float) -> str:
        """Wait until it has ended, and give its log.

        Raises:
            RuntimeError: It has not ended in time; it is stopped then. The message holds its log.
        """
        assert self._running is not None, f"{self.command[0]} has not been started"
        try:
            self._running.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise RuntimeError(f"`{' '.join(self.command)}` took over {timeout} s:\n{self.log}") from None
        return self.log

    def wait_for(self, text: str, timeout: float, times: int = 1) -> str:
        """Wait until it has written a text, or has so many times, and give its log.

        Raises:
            RuntimeError: It has not in time, or it ended without. It is left as it is.
        """
        deadline = time.monotonic() + timeout
        while self.log.count(text) < times:
            ended = not self.is_running
            if (ended or time.monotonic() > deadline) and self.log.count(text) < times:
                how = "ended" if ended else f"ran {timeout} s"
                raise RuntimeError(f"`{' '.join(self.command)}` {how} without writing {text!r}:\n{self.log}")
            time.sleep(0.1)
        return self.log

    def stop(self, timeout: float = 10.0) -> None:
        """Ask it to end; after a while make it and all that it started end. Does nothing if none runs."""
        self.terminate()
        if self._running is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._running.wait(timeout)
        self.kill()

    def terminate(self) -> None:
        """Ask it to end, and wait for nothing."""
        if self.is_running:
            self._running.terminate()

    def kill_alone(self) -> None:
        """End it at once, but nothing that it started."""
        if self.is_running:
            self._running.kill()
            self._running.wait()

    def kill(self) -> None:
        """End it and all that it started at once, as if its machine had lost power."""
        while family := self.family():
            for process in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(family, timeout=5)
        if self._running is not None:
            self._running.wait()

    def family(self) -> list[psutil.Process]:
        """Find it and all that it started, as far as they run."""
        return [process for process in psutil.process_iter() if self._is_ours(process)]

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            if process.status() == psutil.STATUS_ZOMBIE or process.pid == os.getpid():
                return False
            return process.environ().get(_MARK) == self._env[_MARK]
        except psutil.Error:
            return False
