"""Runs fits of every strategy, killed by SIGKILL at some writes; prints what resuming gives, as JSON.

Rules and server optimizers are at work on the toy federation; algorithms with two halves on real fits, whose
clients keep their states in folders that the kill may leave half written.
"""

import gc
import json
import logging
import os
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2] / "client"))

import _quadratic
import _toy as toy
import torch
from _killable import KillAt, in_a_child

from lightning_fl_ext import (
    CentredClipping,
    CoordinateMedian,
    Ditto,
    ExactFedAdagrad,
    ExactFedAdam,
    ExactFedAvgM,
    ExactFedYogi,
    FedDyn,
    FedNova,
    FedProx,
    FedRep,
    GeometricMedian,
    KrumSelection,
    RobustFedAvg,
    RoundCheckpoint,
    RoundLedger,
    Scaffold,
    TrimmedMean,
    WeightExchange,
)

ON_THE_TOY = {
    "CoordinateMedian": lambda: RobustFedAvg(CoordinateMedian()),
    "TrimmedMean": lambda: RobustFedAvg(TrimmedMean(0.2)),
    "Krum": lambda: RobustFedAvg(KrumSelection(1)),
    "MultiKrum": lambda: RobustFedAvg(KrumSelection(1, select=2)),
    "GeometricMedian": lambda: RobustFedAvg(GeometricMedian()),
    "CentredClipping": lambda: RobustFedAvg(CentredClipping(1.0)),
    "ExactFedAvgM": ExactFedAvgM,
    "ExactFedAdam": ExactFedAdam,
    "ExactFedYogi": ExactFedYogi,
    "ExactFedAdagrad": ExactFedAdagrad,
}
ON_REAL_FITS = {
    "FedProx": lambda: FedProx(0.3),
    "Scaffold": Scaffold,
    "FedNova": FedNova,
    "FedDyn": lambda: FedDyn(0.2),
    "Ditto": lambda: Ditto(0.3),
    "FedRep": FedRep,
}
NAMES = [*ON_THE_TOY, *ON_REAL_FITS]
KILLS = 0.35, 0.8
"""After which part of a fit's writes."""


class Judged(_quadratic.Quadratic):
    """Validates too, so that the ledger has what each client's own model is worth."""

    def validation_step(self, batch, _):
        self.log("val_loss", self.loss(batch), batch_size=len(batch[0]))


def fit(name, folder, ckpt_path=None):
    told = {"callbacks": [RoundCheckpoint(), RoundLedger()], "default_root_dir": folder}
    if name in ON_THE_TOY:
        trainer = toy.make_trainer(ON_THE_TOY[name](), max_rounds=2, **told)
        return trainer.fit(toy.Net(buffers=True), toy.make_grid(5), ckpt_path=ckpt_path).digest
    exchange = WeightExchange(exclude="head" if name == "FedRep" else ())
    client = _quadratic.app(Judged, exchange=exchange, keep_local=folder / "clients")
    own = {"model": Judged, "exchange": exchange, "fit": {"ckpt_path": ckpt_path}}
    strategy, judged = ON_REAL_FITS[name](), float(name in ("Ditto", "FedRep"))
    trainer = _quadratic.run(strategy, client, rounds=2, clients=3, evaluate=judged, **own, **told)
    return trainer.result.digest


def kills_of(name, folder):
    """Kill at moments spread over a fit, and go on."""

    def undisturbed():
        killer = KillAt(0)
        return fit(name, folder / "undisturbed"), killer.count

    _, (digest, steps) = in_a_child(undisturbed)
    ledger = (folder / "undisturbed" / "ledger.jsonl").read_bytes()
    found = []
    for part in KILLS:
        n = round(steps * part)
        own = folder / str(n)

        def killed(n=n, own=own):
            KillAt(n)
            return fit(name, own)

        signal_number, _ = in_a_child(killed)
        rounds = len(list((own / "checkpoints").glob("round-*")))
        _, resumed = in_a_child(lambda own=own: fit(name, own, ckpt_path="last"))
        same = (own / "ledger.jsonl").read_bytes() == ledger
        found.append({"signal": signal_number, "rounds": rounds, "digest": resumed, "same_ledger": same})
    return {"digest": digest, "kills": found}


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    os.fsync = lambda file: None  # what a process wrote outlives its kill without
    gc.freeze()
    print(json.dumps({name: kills_of(name, Path(sys.argv[1]) / name) for name in NAMES}))
