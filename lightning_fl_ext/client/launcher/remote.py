"""Has a message answered by processes that a launcher starts, and ends them whatever happens."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from flwr.app import Context, Message

from lightning_fl_ext.client.launcher.ending import POLL, end_all
from lightning_fl_ext.client.launcher.kept import KeptProcesses
from lightning_fl_ext.client.launcher.launchers import WORKER, Command, Launcher
from lightning_fl_ext.client.launcher.message_file import read_reply, read_worker_failure, write_message
from lightning_fl_ext.errors import LightningFLError

Started = subprocess.Popen[bytes]

_LAST_WORDS = 1.0
"""Seconds that the other processes have to say what became of them, after the first has failed."""


class ProcessesFailedError(LightningFLError):
    """The processes of a client did not answer: one raised, was killed, or took too long."""


def answer_in_processes(
    name: str, message: Message, context: Context, launcher: Launcher, count: int, timeout: float | None
) -> Message:
    """Have processes answer a message.

    The message, the context, the reply and what a process raised lie in a folder that nobody else can read,
    until this function ends.

    Args:
        name: Of the ClientApp, which each process imports: ``MODULE:NAME`` or ``FILE.py:NAME``.
        message: To answer.
        context: Its state is replaced by that which rank 0 leaves.
        launcher: Starts the processes.
        count: How many the strategy needs.
        timeout: Seconds after which they are ended; None for no limit.

    Raises:
        ProcessesFailedError: They did not answer.
    """
    with ExitStack() as around:
        try:
            folder = around.enter_context(tempfile.TemporaryDirectory(prefix="lightning-fl-"))
            given, out = Path(folder, "message.safetensors"), Path(folder, "out")
            out.mkdir(mode=0o700)
            write_message(given, message, context)
        except OSError as error:
            raise ProcessesFailedError(
                f"the message for the processes cannot be written: {error}. Have TMPDIR name a folder that"
                " this user may write to, with room for the message and the reply."
            ) from None
        if isinstance(launcher, KeptProcesses):
            _answer_by_kept(launcher, name, count, given, out, timeout)
        else:
            _answer_by_new(launcher, name, count, given, out, timeout)
        if not (out / "reply.safetensors").exists():
            raise ProcessesFailedError(
                f"{launcher!r} ended well, and no process of rank 0 has left a reply in `{out}`. On several"
                " machines, have TMPDIR name a folder that all of them see."
            )
        content, context.state = read_reply(out / "reply.safetensors")
        return Message(content, reply_to=message)


def _answer_by_new(
    launcher: Launcher, name: str, count: int, given: Path, out: Path, timeout: float | None
) -> None:
    read_end, write_end = os.pipe()  # closed with this process: then they end
    started: list[Started] = []
    try:
        with _startable(launcher):
            worker = [*WORKER, str(given), str(out), name]
            started = launcher.start(worker, count, env=_env(), stdin=read_end, start_new_session=True)
        ranks = len(started) == count and not isinstance(launcher, Command)
        watched = _Watched(started, out, ranks=ranks, said_by=repr(launcher))
        watched.wait(lambda: all(process.poll() == 0 for process in started), timeout)
    finally:
        os.close(write_end)
        os.close(read_end)
        end_all(started, launcher.grace)


def _answer_by_kept(
    launcher: KeptProcesses, name: str, count: int, given: Path, out: Path, timeout: float | None
) -> None:
    with (
        _startable(launcher),
        launcher.at_work(name, count, given, out, env=_env(), start_new_session=True) as started,
    ):
        watched = _Watched(started, out, ranks=True, said_by=repr(launcher))
        watched.wait(lambda: len(list(out.glob("done-*"))) == count, timeout)


def _env() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(os.path.abspath(path) for path in sys.path)}


@contextmanager
def _startable(launcher: Launcher) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ProcessesFailedError(f"{launcher!r} could not be started: {error}") from None


@dataclass(frozen=True)
class _Watched:
    """Processes at work on a message.

    Attributes:
        started: They, or the command that has started them.
        out: Where each leaves ``done-RANK``, or what it raised.
        ranks: Whether there is one for each rank, in their order.
        said_by: The launcher.
    """

    started: Sequence[Started]
    out: Path
    ranks: bool
    said_by: str

    def wait(self, is_done: Callable[[], bool], timeout: float | None) -> None:
        """Wait until all is done.

        Raises:
            ProcessesFailedError: One has failed, or time is up.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while not is_done():
            if self._failed():
                end = time.monotonic() + _LAST_WORDS
                while time.monotonic() < end and any(process.poll() is None for process in self.started):
                    time.sleep(POLL)
                raise ProcessesFailedError(self._why())
            if deadline is not None and time.monotonic() > deadline:
                raise ProcessesFailedError(
                    self._raised()
                    or "a fit or evaluation in several processes took more than"
                    f" `fit_timeout={timeout}` seconds and was ended. Give it more, or look for a rank that"
                    " waits for another."
                )
            time.sleep(POLL)

    def _failed(self) -> list[int]:
        codes = [process.poll() for process in self.started]
        return [i for i, code in enumerate(codes) if code or (code == 0 and self._vanished(i))]

    def _vanished(self, rank: int) -> bool:
        """Tell whether a rank that has ended left nothing: another then raises that it is gone."""
        left = (self.out / f"done-{rank}", self.out / f"error-{rank}.json")
        return self.ranks and not any(path.exists() for path in left)

    def _why(self) -> str:
        failed, count = self._failed(), len(self.started)
        for i in failed:
            code = self.started[i].returncode
            name = signal.Signals(-code).name if code < 0 else ""
            if name not in ("", "SIGABRT"):  # a rank aborts when another is gone
                hint = " The system may have run out of memory." if name == "SIGKILL" else ""
                return f"process {i} of {count} was killed by {name}.{hint}"
        vanished = [i for i in failed if self.started[i].returncode >= 0 and self._vanished(i)]
        if not vanished and (raised := self._raised()):
            return raised
        i = (vanished or failed)[0]
        return (
            f"process {i} of {count} ended with code {self.started[i].returncode} and left no traceback. What"
            f" it printed is in the client's own output. It ran {self.started[i].args!r}."
        )

    def _raised(self) -> str:
        told = [read_worker_failure(path) for path in self.out.glob("error-*.json")]
        if not told:
            return ""
        first, raised = min(told), {failure.rank for failure in told}
        text = f"process {first.rank} of {first.world_size} raised:\n{first.traceback.rstrip()}"
        count = int(first.world_size) if first.world_size.isdecimal() else 0
        silent = [rank for rank in range(count) if rank not in raised]
        if self.ranks or not silent:
            return text
        return (
            f"{text}\nNothing came from process {', '.join(map(str, silent))}: if this is about a lost"
            f" connection or a signal, look there first. {self.said_by} may say more in the"
            " client's own output."
        )
