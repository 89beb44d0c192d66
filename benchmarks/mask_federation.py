"""The federated runs that ``masks.py`` and ``mask_conv4.py`` compare, all in Flower messages.

A client here is a hand-written ``ClientApp`` on the exchange's client half, with a plain torch loop, so that
a run costs little more than its training. `LocalGrid` carries the messages; what is counted is in them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from flwr.app import ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.serde import recorddict_to_proto
from flwr.serverapp.strategy import Strategy
from numpy.typing import NDArray
from torch import nn

from lightning_fl_ext import (
    ExactFedAvg,
    FederatedTrainer,
    FedPM,
    LocalGrid,
    MaskedModule,
    MaskExchange,
    RoundCallback,
    WeightExchange,
)
from lightning_fl_ext.aggregation.mask_posterior import ThetaCounts
from lightning_fl_ext.client.bridge.held import read_held, write_held
from lightning_fl_ext.client.messages import outcome_reply, query_reply, read_instruction
from lightning_fl_ext.results import Arrays, ClientUpdate
from lightning_fl_ext.seeds import derive_seed, seeded
from lightning_fl_ext.wire import Exchange, RoundInfo, to_record
from lightning_fl_ext.wire.masks.names import COUNTS, MASKS, TRIALS

CLIENTS, EPOCHS, BATCH, SIZE, TRAIN = 10, 3, 32, 151_072, 1437
PARTITIONS = ("IID", "two-shard")

Log = list[dict[str, Any]]
"""One entry for each round."""


class ThetaExchange(Exchange):
    """θ itself in float32, both ways: what a mask is one sample of."""

    def pack(self, state: Any) -> dict[str, NDArray[Any]]:
        """The probabilities of all masks."""
        return {n: torch.sigmoid(s).numpy() for n, s in state.items() if n.startswith("scores.")}

    def unpack(self, arrays: Arrays, state: Any) -> dict[str, torch.Tensor]:
        """The scores, from probabilities kept in [0.01, 0.99] as `FedPM` keeps them."""
        return {name: torch.logit(torch.tensor(p).clamp(0.01, 0.99)) for name, p in arrays.items()}


UPLINKS: dict[str, Exchange] = {
    "dithered": MaskExchange("dithered"),
    "dithered, stratified": MaskExchange("dithered", stratified=True),
    "random": MaskExchange("random", down="relay"),
    "float θ": ThetaExchange(),
    "FedAvg": WeightExchange(),
}
PACKED: dict[str, tuple[str, Exchange]] = {
    "dithered": ("packed", MaskExchange("packed")),
    "dithered, stratified": ("packed, stratified", MaskExchange("packed", stratified=True)),
}
"""The code that sends the same masks at one bit each."""


def make_net() -> nn.Module:
    """The convolutional net, of 151 072 weights."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1, bias=False),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1, bias=False),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(1024, 128, bias=False),
        nn.ReLU(),
        nn.Linear(128, 10, bias=False),
    )


class Images:
    """The data of one run: each client's share, and the test set.

    Args:
        x: Images, of shape (examples, channels, height, width).
        y: Their labels.
        train: The first so many are trained on; the others are the test set.
        partition: One of `PARTITIONS`.
        rng: Deals the shards.
        batch: Examples in a batch.
    """

    def __init__(
        self,
        x: torch.Tensor,
        y: torch.Tensor,
        train: int,
        partition: str,
        rng: np.random.Generator,
        batch: int = BATCH,
    ) -> None:
        self.x, self.y, self.train, self.batch = x, y, train, batch
        if partition == "IID":
            self.shares = np.array_split(np.arange(train), CLIENTS)
        else:
            shards = np.array_split(np.argsort(y[:train].numpy(), kind="stable"), 2 * CLIENTS)
            dealt = rng.permutation(2 * CLIENTS)
            self.shares = [np.concatenate([shards[i] for i in dealt[k::CLIENTS]]) for k in range(CLIENTS)]

    def accuracy(self, net: nn.Module) -> float:
        """On the test set."""
        with torch.no_grad():
            return float((net(self.x[self.train :]).argmax(1) == self.y[self.train :]).float().mean())

    def fit(self, net: nn.Module, client: int, lr: float) -> float:
        """One client's local training; returns the loss of the last batch."""
        optimizer = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], lr=lr)
        net.train()
        for _ in range(EPOCHS):
            share = torch.tensor(self.shares[client])[torch.randperm(len(self.shares[client]))]
            for batch in share.split(self.batch):
                optimizer.zero_grad()
                loss = F.cross_entropy(net(self.x[batch]), self.y[batch])
                loss.backward()
                optimizer.step()
        return loss.item()


def digits(partition: str, seed: int) -> Images:
    """scikit-learn's digits, 8 x 8 in grey."""
    from sklearn.datasets import load_digits

    rng = np.random.Generator(np.random.PCG64(seed))
    x, y = load_digits(return_X_y=True)
    order = rng.permutation(len(x))
    images = torch.tensor(x[order] / 16, dtype=torch.float32).view(-1, 1, 8, 8)
    return Images(images, torch.tensor(y[order]), TRAIN, partition, rng)


def lean_app(net: nn.Module, data: Images, exchange: Exchange, lr: float, notes: Log) -> ClientApp:
    """A ClientApp without a Trainer. Clients run one after the other and share `net`.

    What is measured goes to `notes`: in the messages is what any module would send, with its training loss.
    """
    app = ClientApp()
    built = {name: value.clone() for name, value in net.state_dict().items()}

    @app.query()
    def query(message: Message, context: Context) -> Message:
        return query_reply(message, str(context.node_config["partition-id"]))

    @app.train()
    def train(message: Message, context: Context) -> Message:
        client = str(context.node_config["partition-id"])
        received, _, info, _ = read_instruction(message, client, exchange, read_held(context))
        net.load_state_dict(exchange.unpack(received, built), strict=False)
        start = _trainable(net)
        with seeded(derive_seed(info.run_seed, info.server_round, client, "train")):
            loss = data.fit(net, int(client), lr)
        end = _trainable(net)
        if not end.isfinite().all():
            raise FloatingPointError("a score is infinite")
        packed = exchange.pack(net.state_dict())
        sent = exchange.to_server(packed, received, info)
        update = ClientUpdate(
            sent,
            len(data.shares[int(client)]),
            client_id=client,
            server_round=info.server_round,
            metrics={"train_loss": loss},
        )
        reply = outcome_reply(message, update, {}, exchange.coded)
        write_held(context, exchange.keepsake(received))
        notes.append(
            {
                "up": length(reply.content),
                "down": length(message.content),
                "besides_up": length(reply.content) - array_bytes(reply.content),
                "besides_down": length(message.content) - array_bytes(message.content),
                "still": float((end == start).double().mean()),
                "progress": progress(packed, received, exchange.from_client(sent, received, info)),
            }
        )
        return reply

    return app


def progress(packed: Arrays, received: Arrays, decoded: Arrays) -> float:
    """How far masks go from the server's θ to the client's: 1 on average if their law is Bernoulli(θ)."""
    if MASKS not in decoded:
        return 1.0
    theta = ThetaCounts(received[COUNTS], int(received[TRIALS])).probabilities()
    moved = packed[MASKS].astype(np.float64) - theta
    return float(np.dot(decoded[MASKS] - theta, moved) / np.dot(moved, moved))


def length(content: RecordDict) -> int:
    """Bytes of all that a message holds, as it travels: arrays and their headers, names, metrics, config."""
    return len(recorddict_to_proto(content).SerializeToString())


def array_bytes(content: RecordDict) -> int:
    """Bytes of the arrays' data."""
    records = (record for record in content.values() if isinstance(record, ArrayRecord))
    return sum(len(array.data) for record in records for array in record.values())


class RoundLog(RoundCallback):
    """Keeps of every round what the tables show, per client."""

    def __init__(self, code: str, notes: Log) -> None:
        self.code = code
        self.notes = notes
        self.log: Log = []

    def on_round_start(self, trainer: FederatedTrainer) -> None:
        """Keep the counts of the round before."""
        self.last = trainer.arrays

    def on_round_end(self, trainer: FederatedTrainer) -> None:
        """Note the round."""
        record = trainer.rounds[-1]
        assert len(self.notes) == len(record.accepted), "a client was asked twice"
        notes = {name: float(np.mean([note[name] for note in self.notes])) for name in self.notes[0]}
        most = max(note["down"] for note in self.notes)
        self.notes.clear()
        exchange = trainer.exchange
        alone = exchange.to_client(self.last, RoundInfo(trainer.seed, trainer.current_round))
        alone_bytes = array_bytes(RecordDict({"arrays": to_record(alone, exchange.coded)}))
        self.log.append(
            {
                **notes,
                "up": {self.code: notes["up"]},
                "most": most,
                "alone": notes["besides_down"] + alone_bytes,
                "accuracy": record.metrics["server_accuracy"],
                "sampled": record.metrics["server_sampled"],
                "digest": record.digest,
            }
        )


def federate(
    code: str,
    exchange: Exchange,
    data: Images,
    build: Callable[[], nn.Module],
    seed: int,
    rounds: int,
    fraction: float = 1.0,
    samples: int = 5,
) -> Log:
    """One federated run of a net on data, with this fraction of the clients in each round.

    The accuracy of sampled masks is the mean over so many of them.
    """
    masked = not isinstance(exchange, WeightExchange)
    kind = FedPM if exchange.coded else ExactFedAvg
    strategy: Strategy = kind(fraction_train=fraction, fraction_evaluate=0.0)

    def make() -> nn.Module:
        return MaskedModule(build(), seed=seed) if masked else build()

    def evaluate(net: Any) -> dict[str, float]:
        accuracy = data.accuracy(net)
        sampled = [data.accuracy(net.bake("sample")) for _ in range(samples)] if masked else [accuracy]
        return {"accuracy": accuracy, "sampled": float(np.mean(sampled))}

    notes: Log = []
    log = RoundLog(code, notes)
    app = lean_app(make(), data, exchange, 0.1 if masked else 1e-3, notes)
    with tempfile.TemporaryDirectory() as folder:
        trainer = FederatedTrainer(
            max_rounds=rounds,
            strategy=strategy,
            seed=seed,
            exchange=exchange,
            callbacks=[log],
            on_bad_update="raise",
            default_root_dir=folder,
            enable_progress_bar=False,
        )
        trainer.fit(make, LocalGrid(app, CLIENTS), evaluate)
    return log.log


def run(uplink: str, partition: str, seed: int, rounds: int, packed_rounds: int, fraction: float) -> Log:
    """One way up, and beside it the first rounds in the packed code, if that sends the same masks.

    Raises:
        AssertionError: The packed masks gave another model, or took another number of bytes.
    """
    data = digits(partition, seed)
    log = federate(uplink, UPLINKS[uplink], data, make_net, seed, rounds, fraction)
    if uplink in PACKED:
        code, exchange = PACKED[uplink]
        packed = federate(code, exchange, data, make_net, seed, min(rounds, packed_rounds), fraction)
        for ours, theirs in zip(log, packed, strict=False):
            assert ours["digest"] == theirs["digest"], "packed and dithered masks differ"
            assert theirs["up"] == packed[0]["up"], "packed masks vary in length"
        for ours in log:
            ours["up"] |= packed[0]["up"]
    return log


def _trainable(net: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in net.parameters() if p.requires_grad])
