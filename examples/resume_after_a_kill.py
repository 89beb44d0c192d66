"""A federated run is killed half-way, goes on, and ends with the weights of a run that was not.

Run it with ``python examples/resume_after_a_kill.py``; it takes some ten seconds. The server runs in a
process of its own, with a checkpoint and a line in the ledger after each round. As soon as the third round's
checkpoint is there, that process gets a SIGKILL: no handler runs, nothing is flushed. This process goes on
with ``fit(..., ckpt_path="last")``. Another run, never disturbed, has to end with the same digest.

Expected output (the digest may differ on other hardware or torch builds):

    round 0/6  server_accuracy 0.04222
    round 1/6  clients 5/5  server_accuracy 0.4956  train_loss 1.924
    round 2/6  clients 5/5  server_accuracy 0.7578  train_loss 1.388
    round 3/6  clients 5/5  server_accuracy 0.8111  train_loss 0.9014
    killed by signal 9
    going on after round 3
    round 4/6  clients 5/5  server_accuracy 0.8289  train_loss 0.6533
    round 5/6  clients 5/5  server_accuracy 0.9022  train_loss 0.4792
    round 6/6  clients 5/5  server_accuracy 0.8689  train_loss 0.3296
    digest of the final model: d851c897...
    once more, undisturbed ...
    ...
    digest of the final model: d851c897...
    the same weights: True
    the same ledger, byte for byte: True
"""

import logging
import multiprocessing
import tempfile
import time
from pathlib import Path

import lightning.pytorch as L
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, Subset, TensorDataset

from lightning_fl_ext import (
    ExactFedAvg,
    FederatedTrainer,
    LocalGrid,
    RoundCheckpoint,
    RoundLedger,
    RoundProgressBar,
    client_app,
    dirichlet_split,
    verify_ledger,
)

CLIENTS, ROUNDS, KILL_AFTER = 5, 6, 3

images, labels = load_digits(return_X_y=True)
digits = TensorDataset(torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels))
shares = dirichlet_split(labels[450:], CLIENTS, alpha=1.0, seed=0)


class LitDigits(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))

    def training_step(self, batch, _):
        x, y = batch
        loss = F.cross_entropy(self.net(x), y)
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.5)


def data(context):
    share = 450 + shares[int(context.node_config["partition-id"])]
    return DataLoader(Subset(digits, share.tolist()), batch_size=16, shuffle=True)


def evaluate(model):
    x, y = digits[:450]
    return {"accuracy": (model.net(x).argmax(1) == y).float().mean().item()}


def fit(folder):
    """Go on where the folder's newest checkpoint was written, or begin."""
    trainer = FederatedTrainer(
        max_rounds=ROUNDS,
        strategy=ExactFedAvg(fraction_evaluate=0.0),
        seed=7,
        callbacks=[
            RoundProgressBar(metrics=("train_loss", "server_accuracy")),
            RoundLedger(),
            RoundCheckpoint(),
        ],
        default_root_dir=folder,
    )
    grid = LocalGrid(client_app(LitDigits, data, trainer={"accelerator": "cpu"}), CLIENTS)
    return trainer.fit(LitDigits, grid, evaluate=evaluate, ckpt_path="last").digest


def start_and_kill(folder):
    server = multiprocessing.get_context("fork").Process(target=fit, args=(folder,))
    server.start()
    while not (folder / "checkpoints" / f"round-{KILL_AFTER:05d}").exists() and server.is_alive():
        time.sleep(0.005)
    server.kill()
    server.join()
    print(f"killed by signal {-server.exitcode}", flush=True)


def main():
    logging.getLogger("flwr").setLevel(logging.ERROR)
    torch.set_num_threads(1)  # the net is tiny
    root = Path(tempfile.mkdtemp(prefix="resume-after-a-kill-"))
    start_and_kill(root / "killed")
    resumed = fit(root / "killed")
    print("once more, undisturbed ...")
    whole = fit(root / "whole")
    print(f"the same weights: {resumed == whole}")
    ledgers = [(root / run / "ledger.jsonl").read_bytes() for run in ("killed", "whole")]
    same = ledgers[0] == ledgers[1] and verify_ledger(root / "killed").ok
    print(f"the same ledger, byte for byte: {same}")


if __name__ == "__main__":
    main()
