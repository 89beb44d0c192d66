"""Runs fits that SIGTERM or SIGINT reaches at a phase of a round; prints how they ended, as JSON.

Every fit runs in a process of its own, forked.
"""

import gc
import json
import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))

import _toy as toy
import lightning.pytorch as L
import torch
from _killable import in_a_child
from flwr.serverapp.strategy import FedAdam
from lightning.pytorch.loggers import CSVLogger

from lightning_fl_ext import (
    FederatedTrainer,
    RoundCallback,
    RoundCheckpoint,
    RoundLedger,
    client_app,
    run_local,
    server_app,
    verify_ledger,
)
from lightning_fl_ext.files import list_checkpoints

HOOKS = ("on_round_start", "on_messages", "on_reply", "on_replies", "on_round_end")
PHASES = (*HOOKS, "fit", "fsync of a checkpoint", "fsync of the ledger")
ROUND = 2


class Logger(CSVLogger):
    """Notes how it was finalised."""

    ended = ""

    def finalize(self, status):
        super().finalize(status)
        Logger.ended = status


def signal_at(phase, number):
    """Give a callback that signals this process at a phase of round 2, and a fit that does."""
    sent = []

    def send():
        if not sent:
            sent.append(phase)
            signal.raise_signal(number)

    class Signals(RoundCallback):
        told = None

        def on_exception(self, trainer, exception):
            Signals.told = type(exception).__name__

    def hook(self, trainer, *args):
        if trainer.current_round == ROUND:
            send()
            if phase == "on_round_end":
                assert not list_checkpoints(trainer.default_root_dir / "checkpoints")[ROUND - 1 :]

    if phase in HOOKS:
        setattr(Signals, phase, hook)

    def fit(named, partition, server_round):
        if phase == "fit" and server_round == ROUND:
            send()
        return toy.local_fit(named, partition, server_round)

    fsync = os.fsync

    def fsync_and_signal(handle):
        name = os.readlink(f"/proc/self/fd/{handle}")
        where = "round-00002" if phase == "fsync of a checkpoint" else "ledger.jsonl"
        if phase.startswith("fsync") and where in name and b'"round":2' in lines(name):
            send()
        fsync(handle)

    os.fsync = fsync_and_signal
    return Signals(), fit


def lines(name):
    """What tells the ledger's second round from its first; a checkpoint's name says it already."""
    return (
        Path(name).read_bytes().replace(b'"server_round":2', b'"round":2')
        if "ledger" in name
        else b'"round":2'
    )


def run(folder, more=(), fit=toy.local_fit, ckpt_path=None):
    callbacks = [RoundLedger(), *more, RoundCheckpoint()]
    logger = Logger(folder, name="", version="")
    trainer = toy.make_trainer(
        FedAdam(), callbacks=callbacks, default_root_dir=folder, max_rounds=3, logger=logger
    )
    return trainer.fit(toy.Net(buffers=True), toy.make_grid(3, toy.make_app(fit=fit)), ckpt_path=ckpt_path)


def stopped(folder, phase, number):
    callback, fit = signal_at(phase, number)
    try:
        run(folder, [callback], fit)
        ended = "not at all"
    except BaseException as error:
        ended = type(error).__name__ + (f" {error.code}" if isinstance(error, SystemExit) else "")
    return {
        "phase": phase,
        "signal": number,
        "ended": ended,
        "told": type(callback).told,
        "logger": Logger.ended,
        "checkpoints": [number for number, _ in list_checkpoints(folder / "checkpoints")],
        "left": [path.name for path in folder.rglob("*.part")],
        "handler": signal.getsignal(signal.SIGTERM) is signal.SIG_DFL,
        "problems": verify_ledger(folder).problems,
    }


class Lit(L.LightningModule):
    """A real fit that signals in its second batch."""

    number = 0

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        if Lit.number and batch_idx == 1:
            signal.raise_signal(Lit.number)
        return self.layer(batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def real(folder, number):
    Lit.number = number
    data = torch.utils.data.DataLoader(torch.ones(8, 1), batch_size=2)
    logger = Logger(folder, name="", version="")
    trainer = FederatedTrainer(2, default_root_dir=folder, logger=logger, enable_progress_bar=False)
    client = client_app(Lit, lambda context: data, trainer={"accelerator": "cpu"})
    try:
        run_local(server_app(Lit, trainer), client, 3)
        ended = "not at all"
    except BaseException as error:
        ended = type(error).__name__ + (f" {error.code}" if isinstance(error, SystemExit) else "")
    return {"signal": number, "ended": ended, "logger": Logger.ended}


def main(folder):
    _, digest = in_a_child(lambda: run(folder / "undisturbed").digest)
    ledger = (folder / "undisturbed" / "ledger.jsonl").read_bytes()
    found = []
    for number in (signal.SIGTERM, signal.SIGINT):
        for phase in PHASES:
            own = folder / f"{number}-{phase}"
            _, report = in_a_child(lambda own=own, phase=phase, n=number: stopped(own, phase, n))
            _, resumed = in_a_child(lambda own=own: run(own, ckpt_path="last").digest)
            same = (own / "ledger.jsonl").read_bytes() == ledger
            found.append({**report, "resumed": resumed, "same_ledger": same})
    fits = [
        in_a_child(lambda n=number: real(folder / f"real-{n}", n))[1]
        for number in (signal.SIGTERM, signal.SIGINT)
    ]
    print(json.dumps({"digest": digest, "stopped": found, "fits": fits}))


if __name__ == "__main__":
    gc.freeze()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it may be ignored
    main(Path(sys.argv[1]))
