"""The exchange: what of a model travels, and how it is loaded and packed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from numpy.typing import NDArray

from lightning_fl_ext.errors import LightningFLError
from lightning_fl_ext.results import Arrays
from lightning_fl_ext.wire.codes.change import CountedRound

State = Mapping[str, Any]
"""A state dict."""


class StateMismatchError(LightningFLError):
    """Arrays do not fit the model they are meant for; the message lists the differences."""


class NotHeldError(LightningFLError):
    """A client was sent a change of what it does not hold. The server then sends it the whole.

    Attributes:
        words: By which a server knows it, whatever of an exception its engine passes on.
    """

    words = "which this client does not hold"


@dataclass(frozen=True)
class Held:
    """What a client holds of the global arrays, and what a server knows of how others came from it.

    Attributes:
        arrays: What :meth:`Exchange.keepsake` gave.
        counted: Whose updates made the present ones of them; None if these are the present ones.
        payloads: What those clients wrote, in the same order, if the exchange relays it.
    """

    arrays: Arrays
    counted: CountedRound | None = None
    payloads: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class RoundInfo:
    """Whose message it is, and of which round: what an exchange may key its codes by.

    Attributes:
        run_seed: Seed of the run.
        server_round: The round.
        client_id: The client's id; ``""`` on the way down.
        sampled: Ids of all clients asked in the round, sorted; empty if not told.
        held: On a client: what it has kept, as :meth:`Exchange.keepsake` gave it; else empty.
    """

    run_seed: int = 0
    server_round: int = 0
    client_id: str = ""
    sampled: tuple[str, ...] = ()
    held: Arrays = field(default_factory=dict, repr=False, compare=False)


class Exchange:
    """What travels between server and clients. Subclass it for what is not simply weights.

    Two pairs of functions of a state dict, one for each side, and two of what is on the wire, which by
    default is just the arrays::

        server:  start(state) ──> global ── to_client ──┐        ┌── from_client ──> what strategies see
                                                        │  wire  │
        client:  unpack(global, state) <── from_server ─┘        └── to_server <── pack(state)
    """

    coded: frozenset[str] = frozenset()
    """Names of arrays on the wire that are codes: they travel without a header, and strategies see others."""

    tells_sampled: bool = False
    """Whether clients must be told who takes part."""

    relays: bool = False
    """Whether clients may be shown what others wrote."""

    def pack(self, state: State) -> dict[str, NDArray[Any]]:
        """Copy what travels up out of a client's state dict."""
        raise NotImplementedError

    def start(self, state: State) -> dict[str, NDArray[Any]]:
        """Give the global arrays of a run that starts from the server's state dict."""
        return self.pack(state)

    def unpack(self, arrays: Arrays, state: State) -> dict[str, torch.Tensor]:
        """Check global arrays against the state dict they are meant for, and convert them to tensors.

        Raises:
            StateMismatchError: They do not fit.
        """
        raise NotImplementedError

    def to_client(self, arrays: Arrays, info: RoundInfo) -> Arrays:
        """On the server: write down the global arrays."""
        return arrays

    def to_holder(self, arrays: Arrays, info: RoundInfo, held: Held) -> Arrays | None:
        """On the server: write them down for a client that holds others; None if it is to have the whole."""
        return None

    def from_server(self, arrays: Arrays, info: RoundInfo) -> Arrays:
        """On a client: read the global arrays.

        Raises:
            NotHeldError: They build on some that the client does not hold.
        """
        return arrays

    def keepsake(self, arrays: Arrays) -> Arrays:
        """Give what of the global arrays a client keeps, so that the next ones can build on it: nothing."""
        return {}

    def to_server(self, arrays: Arrays, received: Arrays | None, info: RoundInfo) -> Arrays:
        """On a client: write down what :meth:`pack` gave, knowing the global arrays."""
        return arrays

    def from_client(self, arrays: Arrays, sent: Arrays, info: RoundInfo) -> Arrays:
        """On the server: read what a client wrote, knowing the global arrays.

        Raises:
            LightningFLError: It cannot be read.
        """
        return arrays

    def like(self, sent: Arrays) -> Arrays:
        """On the server: arrays of the names, shapes and dtypes that :meth:`from_client` gives."""
        return sent
