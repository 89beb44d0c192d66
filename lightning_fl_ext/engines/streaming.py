"""Replies one at a time, as they arrive, from any grid."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence

from flwr.app import Message
from flwr.serverapp import Grid

from lightning_fl_ext.text import listed

log = logging.getLogger(__name__)

_POLL_SECONDS = 0.2
_REMIND_SECONDS = 30.0


def stream_replies(
    grid: Grid,
    messages: Sequence[Message],
    timeout: float | None,
    name_of: Callable[[int], str] = str,
) -> Iterator[Message]:
    """Send messages, and yield each reply when it is there.

    Ends when every message has been answered, or at ``timeout``. Messages that are added to the list
    meanwhile are sent as well. Who holds a reply holds its memory: a caller that lets go of one before it
    takes the next needs room for one.

    Args:
        grid: Any Flower ``Grid``.
        messages: At most one per node at a time. Each one's ``metadata.message_id`` is set on sending.
        timeout: Seconds to wait for the last reply; None to wait for ever. Clients that run in this process
            are not waited for, and have no timeout: which of them answer must not depend on the clock.
        name_of: From a node's id to what the reminder, which is logged while waiting, calls it.

    Yields:
        Replies in the order of arrival, error replies among them.
    """
    if not messages:
        return
    in_process = bool(getattr(grid, "in_process", False))
    outstanding: set[str] = set()
    pushed = 0
    start = reminded = time.monotonic()
    while outstanding or pushed < len(messages):
        if new := list(messages[pushed:]):
            # A node that has gone since it was chosen gets no message; its place among the ids is empty.
            outstanding.update(message_id for message_id in grid.push_messages(new) if message_id)
            pushed += len(new)
            if not outstanding:
                continue
        arrived = list(grid.pull_messages(outstanding))
        outstanding -= {reply.metadata.reply_to_message_id for reply in arrived}
        while arrived:
            yield arrived.pop(0)
        now = time.monotonic()
        if not in_process and timeout is not None and now - start >= timeout:
            return
        if outstanding and now - reminded >= _REMIND_SECONDS:
            reminded = now
            missing = [m.metadata.dst_node_id for m in messages if m.metadata.message_id in outstanding]
            log.warning(
                "waiting for %d of %d replies (%.0f s): %s",
                *(len(missing), len(messages), now - start, listed(sorted(map(name_of, missing)))),
            )
        if outstanding and not in_process:
            time.sleep(_POLL_SECONDS if timeout is None else min(_POLL_SECONDS, start + timeout - now))
