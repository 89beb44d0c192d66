"""A copy on disk of what a client holds of the global arrays, for when its `Context` is lost."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flwr.app import Context, Message

from lightning_fl_ext.client.bridge.held import HELD, read_held, write_held
from lightning_fl_ext.client.identity import client_id
from lightning_fl_ext.client.messages import read_run_id
from lightning_fl_ext.client.persistence.state_folder import StateFolder
from lightning_fl_ext.errors import LightningFLError
from lightning_fl_ext.files import arrays_from_bytes, arrays_to_bytes
from lightning_fl_ext.once import warn_once
from lightning_fl_ext.text import shown

log = logging.getLogger(__name__)

_NAME = "held.safetensors"


@contextmanager
def held_on_disk(root: Path | None, message: Message, context: Context) -> Iterator[None]:
    """While a message is answered: put back before what the context has lost, and copy after what it holds.

    What was read is not trusted: an exchange compares it by digest with what the server means. So a copy that
    is lost or damaged costs a longer message and nothing else, and so does one that cannot be written.

    Args:
        root: Where states of all clients lie; None: nowhere, and nothing is done.
        message: Tells the run.
        context: The client's.

    Raises:
        InstructionError: The message names no run.
    """
    if root is None:
        yield
        return
    run_id = read_run_id(message, context)
    folder = StateFolder(root, client_id(context) or f"node {context.node_id}", run_id)
    path = folder.path / _NAME
    if HELD not in context.state and path.is_file():
        _put_back(folder, path, context)
    before = context.state.get(HELD)
    yield
    after = context.state.get(HELD)
    if after is None or (after == before and path.is_file()):
        return
    try:
        folder.write_file(_NAME, arrays_to_bytes(read_held(context)))
    except LightningFLError as error:
        text = (
            f"{error} Until then, what it holds of the global arrays is in memory alone: if it starts again,"
            " it is sent all of them once more."
        )
        warn_once(log, run_id, text, topic=f"held {folder.client_id}")


def _put_back(folder: StateFolder, path: Path, context: Context) -> None:
    try:
        write_held(context, arrays_from_bytes(path.read_bytes()))
    except Exception as error:  # whatever the parsers stumble over, it is no such copy
        text = (
            f"client `{folder.client_id}`: `{path}` is not what was written there ({shown(error)}), so it is"
            " sent all of the global arrays."
        )
        warn_once(log, folder.run_id, text)
