"""Which client stands behind which node."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from lightning_fl_ext.engines import stream_replies
from lightning_fl_ext.engines.private import NOT_REACHED
from lightning_fl_ext.server.screening.rejection import Rejected
from lightning_fl_ext.server.screening.values import screen_name
from lightning_fl_ext.text import shown
from lightning_fl_ext.wire.client_record import declared_id

log = logging.getLogger(__name__)


class Clients:
    """Maps a grid's node ids, which are random, to the clients' declared ids.

    A node is known by its registered name, else by its app's answer to a query, which is asked once, else by
    the id in its first reply. A node that declares none goes by its node id, and sampling among such nodes
    does not reproduce.

    Args:
        grid: Any Flower ``Grid``.
        timeout: Seconds to wait for the answers to a query.
        longest_id: Characters that an id may have.
    """

    def __init__(self, grid: Grid, timeout: float | None, longest_id: int = 256) -> None:
        self._grid = grid
        self._timeout = timeout
        self._longest_id = longest_id
        self._ids: dict[int, str] = {}
        self._registered: set[int] = set()
        self._asked: set[int] = set()

    def __getitem__(self, node_id: int) -> str:
        return self._ids.get(node_id, str(node_id))

    def declares(self, node_id: int) -> bool:
        """Tell whether the node's client has an id of its own."""
        return node_id in self._ids

    def agrees(self, node_id: int, declared: str) -> bool:
        """Compare the id in a reply with the client's; the first one that a nameless client declares is it.

        A registered name stands, whatever the client, which need not know it, calls itself.
        """
        if not declared or node_id in self._registered:
            return True
        return self._ids.setdefault(node_id, declared) == declared

    def ordered(self, node_ids: Iterable[int]) -> list[int]:
        """Sort nodes by client id, having asked those not yet known.

        A client whose SuperNode was killed and started again is a new node, while the old one is still
        listed: the old one is asked once more, and left out if the engine finds it gone.
        """
        nodes = list(node_ids)
        new = {node for node in nodes if node not in self._ids and node not in self._asked}
        self._identify([node for node in nodes if node in new])
        back = {self._ids[node] for node in new if node in self._ids}
        doubtful = [node for node in nodes if node not in new and self[node] in back]
        gone = {node for node, reply in self._ask(doubtful) if _is_gone(reply)}
        return sorted((node for node in nodes if node not in gone), key=lambda node: (self[node], node))

    def shared(self, node_ids: Iterable[int]) -> set[str]:
        """Give the client ids that more than one of these nodes declares."""
        counts = Counter(self[node] for node in node_ids)
        return {client for client, count in counts.items() if count > 1}

    def _identify(self, nodes: list[int]) -> None:
        if not nodes:
            return
        self._asked.update(nodes)
        names = {info.node_id: info.name for info in self._grid.get_nodes()}
        registered = {node: names[node] for node in nodes if names.get(node)}
        self._registered.update(registered)
        self._ids.update(registered)
        for node, reply in self._ask([node for node in nodes if node not in self._ids]):
            if declared := self._answered_id(node, reply):
                self._ids[node] = declared
        anonymous = sum(node not in self._ids for node in nodes)
        if anonymous:
            log.warning(
                "%d node(s) have no registered name and answer no query with a client id: until their replies"
                " declare one, which of them are sampled differs from run to run. Use `client_app`, or answer"
                " queries by hand.",
                anonymous,
            )

    def _answered_id(self, node: int, reply: Message) -> str:
        """Read the id in the answer to a query; ``""`` if there is none, or none that can stand as one."""
        try:
            declared = declared_id(reply.content) if reply.has_content() else ""
            screen_name(declared, self._longest_id)
        except Exception as error:
            why = error if isinstance(error, Rejected) else shown(repr(error))
            log.warning("node %d answers the query for its client's id with none: %s", node, why)
            return ""
        return declared

    def _ask(self, nodes: list[int]) -> Iterator[tuple[int, Message]]:
        """Send nodes a query, and give each one's answer."""
        questions = [Message(RecordDict(), node, "query") for node in nodes]
        asked: dict[str, int] = {}
        for reply in stream_replies(self._grid, questions, self._timeout, self.__getitem__):
            asked = asked or {q.metadata.message_id: q.metadata.dst_node_id for q in questions}
            node = asked.get(reply.metadata.reply_to_message_id)
            if node is not None:
                yield node, reply


def _is_gone(reply: Message) -> bool:
    return reply.has_error() and reply.error.code in NOT_REACHED
