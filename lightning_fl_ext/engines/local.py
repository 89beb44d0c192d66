"""The engine that needs nothing: Flower's ServerApp and ClientApp in this process."""

from __future__ import annotations

import secrets
import traceback
from collections.abc import Callable, Iterable, Sequence

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from lightning_fl_ext.engines import private
from lightning_fl_ext.errors import LightningFLError

Arrival = Callable[[list[Message]], list[Message]]
"""Puts a batch of messages into the order in which clients run and answer."""

Faults = Callable[[Message, Message], Message | None]
"""Given an instruction and its reply: what arrives instead; None if the client vanished."""


class LocalGrid(Grid):
    """A Flower ``Grid`` that runs a ``ClientApp`` in this process, one client after the other.

    It behaves as Flower's engines do: messages and contexts are copied on their way, so that nothing is
    shared between clients or with the server; each client keeps a ``Context`` across rounds, committed only
    when the client succeeds; an exception becomes an error reply that holds the traceback; a client that
    vanished, or was never there, becomes an error reply from the SuperLink. The ids of nodes and of
    the run are random, as they are in Flower, so that nothing can come to depend on them. Clients run when
    their reply is pulled: a caller that takes replies one at a time holds one at a time.

    Args:
        client_app: Flower's ``ClientApp``.
        num_clients: Number of clients; client ``i`` has ``node_config["partition-id"] == i``.
        run_config: What ``context.run_config`` holds on every client.
        arrival: Puts each batch of messages into the order in which the clients run and answer. Default:
            as sent.
        faults: Replaces or drops replies, to try out what happens then.
        node_ids: One distinct id per client; random by default.

    Raises:
        ValueError: ``num_clients`` is below 1, or ``node_ids`` are not as many distinct ids.

    Example:
        >>> from flwr.app import MetricRecord
        >>> app = ClientApp()
        >>> @app.query()
        ... def query(message, context):
        ...     content = RecordDict({"m": MetricRecord({"id": context.node_config["partition-id"]})})
        ...     return Message(content, reply_to=message)
        >>> grid = LocalGrid(app, num_clients=3, arrival=lambda messages: messages[::-1])
        >>> questions = [Message(RecordDict(), node, "query") for node in grid.get_node_ids()]
        >>> [reply.content["m"]["id"] for reply in grid.send_and_receive(questions)]
        [2, 1, 0]
    """

    in_process = True
    """Whoever waits for replies or for more clients here waits in vain: the caller does the work itself."""

    def __init__(
        self,
        client_app: ClientApp,
        num_clients: int,
        *,
        run_config: dict[str, bool | float | int | str] | None = None,
        arrival: Arrival | None = None,
        faults: Faults | None = None,
        node_ids: Sequence[int] | None = None,
    ) -> None:
        if num_clients < 1:
            raise ValueError(f"`num_clients` must be at least 1. Got {num_clients}.")
        if node_ids is None:
            node_ids = [secrets.randbits(62) + 2 for _ in range(num_clients)]
        if len(set(node_ids)) != num_clients:
            raise ValueError(f"`node_ids` must be {num_clients} distinct ids. Got {list(node_ids)}.")
        private.ensure_identity()
        self._client_app = client_app
        self._arrival = arrival
        self._faults = faults
        self._run = private.empty_run(secrets.randbits(62) + 1)
        self._pending: dict[str, Message] = {}
        self._sent = 0
        self._contexts = {
            node_id: Context(
                run_id=self._run.run_id,
                node_id=node_id,
                node_config={"partition-id": i, "num-partitions": num_clients},
                state=RecordDict(),
                run_config=dict(run_config or {}),
            )
            for i, node_id in enumerate(node_ids)
        }

    def set_run(self, run: private.Run) -> None:
        """Set the run this grid belongs to."""
        self._run = run

    @property
    def run(self) -> private.Run:
        """The run this grid belongs to."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Construct a message to one client."""
        return Message(content, dst_node_id, message_type, group_id=group_id, ttl=ttl)

    def get_node_ids(self) -> Iterable[int]:
        """List the clients' node ids."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Queue messages; their clients run when their replies are pulled.

        Raises:
            ValueError: ``arrival`` lost or added messages.
            LightningFLError: No federation may run in this process.
        """
        _refuse_if_forbidden()
        batch = list(messages)
        for message in batch:
            self._sent += 1
            private.set_message_id(message, f"local-{self._sent}")
        arriving = self._arrival(list(batch)) if self._arrival else batch
        if sorted(map(id, arriving)) != sorted(map(id, batch)):
            raise ValueError("`arrival` must return the messages it was given, each once, in any order.")
        self._pending.update((message.metadata.message_id, message) for message in arriving)
        return [message.metadata.message_id for message in batch]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Run the first queued client among those asked for, and return its reply."""
        wanted = set(message_ids)
        message_id = next((m for m in self._pending if m in wanted), None)
        return [] if message_id is None else [self._deliver(self._pending.pop(message_id))]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Run every client a message is for, and return the replies in the order of arrival."""
        sent = set(self.push_messages(messages))
        return [self._deliver(self._pending.pop(m)) for m in list(self._pending) if m in sent]

    def _deliver(self, instruction: Message) -> Message:
        present = instruction.metadata.dst_node_id in self._contexts
        reply = self._execute(instruction) if present else None
        if reply is not None and self._faults is not None:
            reply = self._faults(instruction, reply)
        if reply is None:
            reply = private.node_unavailable(instruction)
        private.set_message_id(reply, f"{instruction.metadata.message_id}-reply")
        return reply

    def _execute(self, instruction: Message) -> Message:
        node_id = instruction.metadata.dst_node_id
        context: Context = private.copied(self._contexts[node_id])
        try:
            reply: object = self._client_app(private.copied(instruction), context)
            if not isinstance(reply, Message):
                raise TypeError(f"a ClientApp must return a `Message`. Got {type(reply).__name__}.")
        except Exception:
            return Message(Error(private.CLIENT_APP_RAISED, traceback.format_exc()), reply_to=instruction)
        self._contexts[node_id] = context
        answer: Message = private.copied(reply)
        return answer


def run_local(
    server_app: ServerApp,
    client_app: ClientApp,
    num_clients: int,
    *,
    run_config: dict[str, bool | float | int | str] | None = None,
    arrival: Arrival | None = None,
    faults: Faults | None = None,
) -> Context:
    """Run a Flower app in this process: no Ray, no SuperLink.

    Args:
        server_app: Flower's ``ServerApp``.
        client_app: Flower's ``ClientApp``.
        num_clients: Number of clients.
        run_config: What ``context.run_config`` holds on the server and on every client.
        arrival: See :class:`LocalGrid`.
        faults: See :class:`LocalGrid`.

    Returns:
        The server's ``Context``, with what the ``ServerApp`` left in its state.

    Raises:
        LightningFLError: This process is one of a client's, which has imported the script.

    Example:
        >>> from flwr.app import ConfigRecord
        >>> server, client = ServerApp(), ClientApp()
        >>> @server.main()
        ... def main(grid, context):
        ...     context.state["seen"] = ConfigRecord({"clients": len(list(grid.get_node_ids()))})
        >>> run_local(server, client, num_clients=4).state["seen"]["clients"]
        4
    """
    _refuse_if_forbidden()
    _check_apps(server_app, client_app)
    grid = LocalGrid(client_app, num_clients, run_config=run_config, arrival=arrival, faults=faults)
    context = Context(
        run_id=grid.run.run_id,
        node_id=private.SERVER_NODE_ID,
        node_config={},
        state=RecordDict(),
        run_config=dict(run_config or {}),
    )
    server_app(grid, context)
    return context


_forbidden = ""
"""Why no federation may run in this process."""


def forbid_federations(why: str) -> None:
    """Have this process run no federation from now on.

    Args:
        why: What is raised where one begins.
    """
    global _forbidden
    _forbidden = why


def _refuse_if_forbidden() -> None:
    if _forbidden:
        raise LightningFLError(_forbidden)


def _check_apps(server_app: object, client_app: object) -> None:
    if not isinstance(server_app, ServerApp) or not isinstance(client_app, ClientApp):
        got = f"{type(server_app).__name__} and {type(client_app).__name__}"
        raise TypeError(f"`server_app` and `client_app` must be Flower's ServerApp and ClientApp. Got {got}.")
