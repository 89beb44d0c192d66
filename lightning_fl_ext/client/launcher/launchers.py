"""Who starts a client's processes: this package on one machine, or a command such as ``torchrun``."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch._C._distributed_c10d import TCPStore  # as torch.distributed has it, which does not declare it

from lightning_fl_ext.errors import LightningFLError


class Launcher(ABC):
    """Starts the processes of a client.

    Attributes:
        grace: Seconds that what it starts has to end by itself, when it is asked to, before it is killed.
    """

    grace = 0.0

    @abstractmethod
    def start(self, worker: Sequence[str], count: int, **options: Any) -> list[subprocess.Popen[bytes]]:
        """Start them.

        Args:
            worker: What each of them is to run.
            count: How many the strategy needs, on all machines together.
            **options: For ``subprocess.Popen``: ``env``, ``stdin``, and ``start_new_session=True``.
        """


class Processes(Launcher):
    """Starts an interpreter for each device of this machine.

    They find each other at a store in the calling process, so no port is guessed. As with Lightning's own
    launchers, they share the processors, unless ``OMP_NUM_THREADS`` says how many threads each has.

    Example:
        >>> Processes()
        Processes()
    """

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def open_store(self) -> str:
        """Open a new store, where processes find each other while this launcher lives; give its port."""
        self._store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        return str(self._store.port)

    def start(self, worker: Sequence[str], count: int, **options: Any) -> list[subprocess.Popen[bytes]]:
        """Start one process for each rank, each told its own as ``torchrun`` tells it."""
        common = {
            "OMP_NUM_THREADS": str(max(1, _num_processors() // count)),
            **options.pop("env", os.environ),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": self.open_store(),
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            "TORCHELASTIC_RUN_ID": f"client-{os.getpid()}",
            "TORCHELASTIC_RESTART_COUNT": "0",
            "TORCHELASTIC_MAX_RESTARTS": "0",
            "WORLD_SIZE": str(count),
            "LOCAL_WORLD_SIZE": str(count),
            "GROUP_RANK": "0",
        }
        started: list[subprocess.Popen[bytes]] = []
        try:
            for rank in range(count):
                env = {**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}
                started.append(subprocess.Popen(worker, env=env, **options))
        except BaseException:
            for process in started:
                process.kill()
            raise
        return started


class Command(Launcher):
    """Starts a command that starts the processes, on one machine or several: ``torchrun``, ``srun``.

    Without ``MASTER_PORT`` in the environment, the processes meet at a port that was free on this machine.

    Args:
        argv: The command and its options. What each process is to run is added at its end.

    Raises:
        ValueError: It is empty.

    Example:
        >>> Command(["torchrun", "--nproc-per-node", "4"])
        Command(['torchrun', '--nproc-per-node', '4'])
    """

    grace = 10.0

    def __init__(self, argv: Sequence[str]) -> None:
        if not argv:
            raise ValueError("`launcher` must be a command, such as ['torchrun', '--nproc-per-node', '4'].")
        self.argv = [str(word) for word in argv]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.argv})"

    def start(self, worker: Sequence[str], count: int, **options: Any) -> list[subprocess.Popen[bytes]]:
        """Start the command; how many processes there are is the command's to say."""
        torchrun = Path(self.argv[0]).name == "torchrun" or "torch.distributed.run" in self.argv
        env = {"MASTER_PORT": _free_port(), **options.pop("env", os.environ)}
        command = [*self.argv, *(["--no-python"] if torchrun else []), *worker]
        return [subprocess.Popen(command, env=env, **options)]


def _free_port() -> str:
    with socket.create_server(("", 0)) as server:
        return str(server.getsockname()[1])


def _num_processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def launcher_of(given: Any) -> Launcher | None:
    """Give the launcher that an argument of ``client_app`` names; None for ``"auto"`` and in this process.

    Raises:
        TypeError: It means none.

    Example:
        >>> launcher_of("auto"), launcher_of(["srun", "--ntasks-per-node", "4"])
        (None, Command(['srun', '--ntasks-per-node', '4']))
    """
    if given is None or isinstance(given, Launcher):
        return given
    if isinstance(given, str) and given in ("auto", "kept", "in-process"):
        return None
    if isinstance(given, Sequence) and not isinstance(given, str | bytes):
        return Command(given)
    raise TypeError(
        "`launcher` must be 'auto', 'kept', 'in-process' (or None), a command as a list of words, such as"
        f" ['torchrun', '--nproc-per-node', '4'], or a `Launcher`. Got {given!r}."
    )


def refuse_other_machines(launcher: Launcher, given: Mapping[str, Any]) -> None:
    """Refuse to start the processes of several machines on this one.

    Args:
        launcher: Is about to start them.
        given: The Trainer's arguments.

    Raises:
        LightningFLError: They are to be on several, and the launcher knows this one alone.
    """
    nodes = given.get("num_nodes", 1)
    if isinstance(launcher, Processes) and nodes not in (1, "1"):
        raise LightningFLError(
            f"`num_nodes={nodes}`, and `{launcher!r}` starts processes on this machine alone. Give a command"
            ' that starts them on all, such as `launcher=["srun", "--ntasks-per-node", "4"]`.'
        )


WORKER = (sys.executable, "-m", "lightning_fl_ext.client.worker")
"""What each process runs, with its three arguments IN OUT MODULE:NAME after it."""
