"""A message to a client and its `Context` in one file; in another the reply, or what was raised instead."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from flwr.app import Context, Message, RecordDict

from lightning_fl_ext.engines.private import described_metadata, restored_message
from lightning_fl_ext.files import write_file
from lightning_fl_ext.text import shown
from lightning_fl_ext.wire.record_file import RecordFileError, read_records, write_records

_CONTENT, _STATE = "content", "state"


def write_message(path: Path, message: Message, context: Context) -> None:
    """Write a message and its context into a safetensors file with a JSON header.

    Args:
        path: The file; its folder must exist, and others should not be able to read it.
        message: With content.
        context: What Flower hands to a ``ClientApp`` with the message.

    Example:
        >>> import tempfile
        >>> from lightning_fl_ext.engines.private import ensure_identity
        >>> ensure_identity()
        >>> context = Context(1, 2, {"client-id": "site-a"}, RecordDict(), {})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_message(Path(folder, "in"), Message(RecordDict(), 2, "train"), context)
        ...     message, context = read_message(Path(folder, "in"))
        >>> message.metadata.message_type, context.node_config
        ('train', {'client-id': 'site-a'})
    """
    about = {
        "run_id": context.run_id,
        "node_id": context.node_id,
        "node_config": dict(context.node_config),
        "run_config": dict(context.run_config),
    }
    told = {"metadata": described_metadata(message), "context": about}
    write_records(path, {_CONTENT: message.content, _STATE: context.state}, told)


def read_message(path: Path) -> tuple[Message, Context]:
    """Read what :func:`write_message` wrote.

    Raises:
        RecordFileError: It is no such file.
    """
    contents, told = read_records(path)
    with _named(path):
        about = told["context"]
        for name, kind in _CONTEXT.items():
            if type(about[name]) is not kind:
                raise TypeError(f"its context's `{name}` is no {kind.__name__}")
        message = restored_message(contents[_CONTENT], told["metadata"])
        return message, Context(state=contents[_STATE], **about)


def write_reply(path: Path, content: RecordDict, state: RecordDict) -> None:
    """Write what a client answers, and the state of its context afterwards."""
    write_records(path, {_CONTENT: content, _STATE: state}, {})


def read_reply(path: Path) -> tuple[RecordDict, RecordDict]:
    """Read what :func:`write_reply` wrote: content and state.

    Raises:
        RecordFileError: It is no such file.
    """
    contents, _ = read_records(path)
    with _named(path):
        return contents[_CONTENT], contents[_STATE]


class WorkerFailure(NamedTuple):
    """What a process leaves that raised.

    Attributes:
        time: When, in seconds by a clock that does not go back.
        rank: Which of the processes it is.
        world_size: How many there are.
        traceback: What it raised.
    """

    time: float
    rank: int
    world_size: str
    traceback: str


def write_failure(path: Path, failure: WorkerFailure) -> None:
    """Write down what a process raised."""
    write_file(path, json.dumps(failure._asdict()).encode())


def read_worker_failure(path: Path) -> WorkerFailure:
    """Read what :func:`write_failure` wrote.

    Raises:
        RecordFileError: It is no such file.
    """
    with _named(path):
        failure = WorkerFailure(**json.loads(path.read_bytes()))
        if list(map(type, failure)) != [float, int, str, str]:
            raise TypeError("an entry of another kind")
        return failure


_CONTEXT = {"run_id": int, "node_id": int, "node_config": dict, "run_config": dict}


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Name a file that is not what it should be, whatever reading it stumbles over."""
    try:
        yield
    except Exception as error:
        said = f"{type(error).__name__}: {shown(error)}"
        raise RecordFileError(
            f"`{path}` is not what a client's process writes, or not whole: {said}"
        ) from None
