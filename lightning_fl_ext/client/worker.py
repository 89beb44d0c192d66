"""One of a client's processes: ``python -m lightning_fl_ext.client.worker IN OUT MODULE:NAME``.

IN is a file that holds a message; OUT a folder, where rank 0 leaves the reply, and each that raises its
traceback. MODULE:NAME is the ClientApp. The process ends when its standard input does: with the client.

``--stay MODULE:NAME`` answers one message after the other, each a line of JSON in standard input: the port of
the store where the ranks find each other, IN and OUT. Every rank then leaves a file ``done-RANK`` in OUT.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from lightning_fl_ext.client.bridge.spawned import leave_group
from lightning_fl_ext.client.launcher.message_file import (
    WorkerFailure,
    read_message,
    write_failure,
    write_reply,
)
from lightning_fl_ext.client.launcher.naming import load_app
from lightning_fl_ext.client.launcher.rank import enter, rank
from lightning_fl_ext.client.launcher.work import work_of

LOST = 3
"""Exit code of a process whose client is gone."""


def main(given: str, out: str, name: str) -> None:
    """Answer one message.

    Args:
        given: The file with the message.
        out: The folder for what comes of it.
        name: Of the ClientApp, ``MODULE:NAME`` or ``FILE.py:NAME``.
    """
    _begin()
    threading.Thread(target=_end_with_client, daemon=True).start()
    _answer(given, out, partial(load_app, name))


def stay(name: str) -> None:
    """Answer messages until the client is gone.

    Args:
        name: As in :func:`main`.
    """
    _begin()
    asked: SimpleQueue[bytes] = SimpleQueue()
    threading.Thread(target=_listen, args=(asked,), daemon=True).start()
    load = cache(partial(load_app, name))
    while True:
        os.environ["MASTER_PORT"], given, out = json.loads(asked.get())
        _answer(given, out, load)
        Path(out, f"done-{rank()}").touch()


def _begin() -> None:
    enter()
    if rank() > 0:  # what every rank would say, rank 0 says
        logging.getLogger("lightning_fl_ext").setLevel(logging.ERROR)


def _answer(given: str, out: str, load: Callable[[], Any]) -> None:
    try:
        message, context = read_message(Path(given))
        reply = work_of(load())(message, context)
        if reply is not None:
            write_reply(Path(out, "reply.safetensors"), reply.content, context.state)
    except BaseException as error:
        _leave_traceback(Path(out), error)
        os._exit(1)  # an orderly end may wait for the other ranks
    with suppress(OSError):
        sys.stdout.flush()  # a process that is kept has none but a sudden end
    leave_group()
    _free_device()


def _end_with_client() -> None:
    try:
        while os.read(0, 1024):
            pass
    except OSError:
        return  # there is no standard input to go by
    os._exit(LOST)


def _listen(asked: SimpleQueue[bytes]) -> None:
    for line in sys.stdin.buffer:
        asked.put(line)
    os._exit(LOST)


def _leave_traceback(out: Path, error: BaseException) -> None:
    trace = "".join(traceback.format_exception(error))
    count = os.environ.get("WORLD_SIZE") or os.environ.get("SLURM_NTASKS") or "1"
    failure = WorkerFailure(time.monotonic(), rank(), count, trace)
    with suppress(OSError):  # nobody reads them
        sys.stdout.flush()
        sys.stderr.write(trace)
        sys.stderr.flush()
    with suppress(OSError):  # the disk is full: what it printed must do
        write_failure(out / f"error-{rank()}.json", failure)


def _free_device() -> None:
    import torch

    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()


if __name__ == "__main__":
    stay(sys.argv[2]) if sys.argv[1] == "--stay" else main(*sys.argv[1:])
