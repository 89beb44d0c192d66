"""A message to a client and its `Context` in one file, and the reply in another."""

from __future__ import annotations

from pathlib import Path

from flwr.app import Context, Message, RecordDict

from lightning_fl_ext.engines.private import described_metadata, restored_message
from lightning_fl_ext.wire.record_file import read_records, write_records

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
    return (
        restored_message(contents[_CONTENT], told["metadata"]),
        Context(state=contents[_STATE], **told["context"]),
    )


def write_reply(path: Path, content: RecordDict, state: RecordDict) -> None:
    """Write what a client answers, and the state of its context afterwards."""
    write_records(path, {_CONTENT: content, _STATE: state}, {})


def read_reply(path: Path) -> tuple[RecordDict, RecordDict]:
    """Read what :func:`write_reply` wrote: content and state.

    Raises:
        RecordFileError: It is no such file.
    """
    contents, _ = read_records(path)
    return contents[_CONTENT], contents[_STATE]
