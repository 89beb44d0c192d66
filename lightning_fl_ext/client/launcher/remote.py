"""Has a message answered by processes that a launcher starts, and ends them whatever happens."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from flwr.app import Context, Message

from lightning_fl_ext.client.launcher.ending import POLL, end_all
from lightning_fl_ext.client.launcher.kept import KeptProcesses
from lightning_fl_ext.client.launcher.launchers import WORKER, Launcher
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
    with tempfile.TemporaryDirectory(prefix="lightning-fl-") as folder:
        given, out = Path(folder, "message.safetensors"), Path(folder, "out")
        out.mkdir(mode=0o700)
        write_message(given, message, context)
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
        failed = _wait(started, lambda: all(process.poll() == 0 for process in started), timeout)
        if failed is not None:
            raise ProcessesFailedError(_why(failed, started, out, timeout))
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

        def is_done() -> bool:
            ended = any(process.poll() == 0 for process in started)  # by the user's own code
            return ended or len(list(out.glob("done-*"))) == count

        failed = _wait(started, is_done, timeout)
        if failed is not None:
            raise ProcessesFailedError(_why(failed, started, out, timeout))


def _env() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(os.path.abspath(path) for path in sys.path)}


@contextmanager
def _startable(launcher: Launcher) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ProcessesFailedError(f"{launcher!r} could not be started: {error}") from None


def _wait(started: Sequence[Started], is_done: Callable[[], bool], timeout: float | None) -> int | None:
    """Wait until all is done; give the index of the first process that failed, or -1 if time is up."""
    deadline = None if timeout is None else time.monotonic() + timeout
    while not is_done():
        codes = [process.poll() for process in started]
        if any(codes):
            end = time.monotonic() + _LAST_WORDS
            while time.monotonic() < end and any(process.poll() is None for process in started):
                time.sleep(POLL)
            return next(i for i, code in enumerate(codes) if code)
        if deadline is not None and time.monotonic() > deadline:
            return -1
        time.sleep(POLL)
    return None


def _why(failed: int, started: Sequence[Started], out: Path, timeout: float | None) -> str:
    for i, process in enumerate(started):
        name = signal.Signals(-process.returncode).name if (process.returncode or 0) < 0 else ""
        if name not in ("", "SIGABRT"):  # a rank aborts when another is gone
            hint = " The system may have run out of memory." if name == "SIGKILL" else ""
            return f"process {i} of {len(started)} was killed by {name}.{hint}"
    told = [read_worker_failure(path) for path in out.glob("error-*.json")]
    if told:
        first = min(told)
        return f"process {first.rank} of {first.world_size} raised:\n{first.traceback.rstrip()}"
    if failed < 0:
        return (
            f"a fit or evaluation in several processes took more than `fit_timeout={timeout}` seconds and was"
            " ended. Give it more, or look for a rank that waits for another."
        )
    code = started[failed].returncode
    return (
        f"process {failed} of {len(started)} ended with code {code} and left no traceback. What it printed is"
        f" in the client's own output. It ran {started[failed].args!r}."
    )
