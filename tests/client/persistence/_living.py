"""A federation in which optimizers outlive the rounds: in files, one process a message, or simply in memory.

As a script it runs both, and prints their digests as JSON.
"""

import gc
import json
import os
import signal
import sys
from pathlib import Path

import lightning.pytorch as L
import numpy as np
import torch
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_fl_ext import ExactFedAvg, FederatedTrainer, LocalGrid, client_app
from lightning_fl_ext.files import arrays_from_bytes, arrays_to_bytes
from lightning_fl_ext.seeds import derive_seed, seeded
from lightning_fl_ext.wire import from_record, to_record

CLIENTS, ROUNDS, EPOCHS, SEED = 5, 4, 2, 4


class Net(L.LightningModule):
    """Dropout draws in every step, and the rate falls with every epoch."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, 1))

    def training_step(self, batch, batch_idx):
        return (self.body(batch[0]) - batch[1]).square().mean()

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), 0.05)
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.8)]


def data(context):
    rng = np.random.default_rng(context.node_config["partition-id"])
    n = 10 + 3 * context.node_config["partition-id"]
    x = torch.from_numpy(rng.normal(size=(n, 3)).astype(np.float32))
    return DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=4, shuffle=True)


def kept(folder):
    """The client of this package, which is made anew for every message."""
    trainer = {"max_epochs": EPOCHS, "accelerator": "cpu", "devices": 1}
    return client_app(Net, data, trainer, keep_optimizer=folder)


def lived_on():
    """A client written by hand, whose module, optimizer and scheduler stay in memory."""
    app, living = ClientApp(), {}

    @app.query()
    def query(message, context):
        return Message(RecordDict({"client": ConfigRecord({"client-id": name(context)})}), reply_to=message)

    @app.train()
    def train(message, context):
        config = message.content["config"]
        new = Net()
        with seeded(derive_seed(config["run-seed"], config["server-round"], name(context), "train")):
            module, optimizer, scheduler = living.setdefault(name(context), (new, *made(new)))
            arrays = from_record(message.content["arrays"])
            module.load_state_dict({key: torch.from_numpy(array.copy()) for key, array in arrays.items()})
            loader = data(context)
            module.train()
            for _ in range(EPOCHS):
                for batch in loader:
                    optimizer.zero_grad()
                    module.training_step(batch, 0).backward()
                    optimizer.step()
                scheduler.step()
        arrays = {key: tensor.numpy() for key, tensor in module.state_dict().items()}
        return answer(message, arrays, len(loader.dataset), name(context), config["server-round"])

    return app


def name(context):
    return str(context.node_config["partition-id"])


def made(module):
    (optimizer,), (scheduler,) = module.configure_optimizers()
    return optimizer, scheduler


def answer(message, arrays, num_examples, client, server_round):
    content = {
        "arrays": to_record(arrays),
        "metrics": MetricRecord({"num-examples": num_examples}),
        "client": ConfigRecord({"client-id": client, "server-round": server_round}),
    }
    return Message(RecordDict(content), reply_to=message)


def federate(app, root=".", rounds=ROUNDS, callbacks=(), ckpt_path=None, arrival=None, seed=SEED):
    """Run rounds in each of which three of the five clients take part; give the trainer."""
    trainer = FederatedTrainer(
        max_rounds=rounds,
        strategy=ExactFedAvg(fraction_train=0.6, fraction_evaluate=0.0),
        seed=seed,
        callbacks=callbacks,
        default_root_dir=root,
        enable_progress_bar=False,
    )
    trainer.fit(Net, LocalGrid(app, CLIENTS, arrival=arrival), ckpt_path=ckpt_path)
    assert not [record.rejected for record in trainer.rounds if record.rejected], trainer.rounds
    return trainer


def in_processes(app, killed=None):
    """Have a new process answer every train message, as Flower's deployment does.

    Args:
        app: Answers.
        killed: A client's name and a round in which its process is killed as it keeps its state, and started
            once more.
    """
    outer = ClientApp()
    outer.query()(app)

    @outer.train()
    def train(message, context):
        server_round = message.content["config"]["server-round"]
        if killed == (name(context), server_round):
            assert answered(app, message, context, kill=True) == b""
        arrays = arrays_from_bytes(answered(app, message, context))
        return answer(message, arrays, len(data(context).dataset), name(context), server_round)

    return outer


def answered(app, message, context, kill=False):
    """Give what a new process answers; nothing if it is killed."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            if kill:
                os.rename = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
            reply = app(message, context)
            with os.fdopen(writer, "wb") as pipe:
                pipe.write(arrays_to_bytes(from_record(reply.content["arrays"])))
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) == kill
    return said


if __name__ == "__main__":
    torch.set_num_threads(1)
    gc.freeze()
    folder = Path(sys.argv[1])
    fresh = federate(in_processes(kept(folder), killed=("3", 3)))
    left_behind = [path.name for path in folder.rglob("*.part")]
    memory = federate(lived_on())
    sampled = [record.sampled for record in memory.rounds]
    digests = {"fresh": fresh.result.digest, "memory": memory.result.digest}
    print("RESULT", json.dumps({**digests, "sampled": sampled, "left_behind": left_behind}))
