"""Runs a fit, killed by SIGKILL at every fifth write, fsync or rename; prints what resuming gives, as JSON.

Every fit runs in a process of its own, forked, so that nothing of it but its files outlives the kill.
"""

import gc
import json
import os
import pathlib
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import _toy as toy
from flwr.serverapp.strategy import FedAdam

from lightning_fl_ext import RoundCheckpoint, RoundLedger

ROUNDS = 3


def fit(folder, rounds=ROUNDS, ckpt_path=None):
    callbacks = [RoundCheckpoint(), RoundLedger(keep_updates=True)]
    trainer = toy.make_trainer(FedAdam(), callbacks=callbacks, default_root_dir=folder, max_rounds=rounds)
    return trainer.fit(toy.Net(buffers=True), toy.make_grid(2), ckpt_path=ckpt_path).digest


class KillAt:
    """Kills this process at the n-th write, fsync or rename; a write is first done by half."""

    def __init__(self, n):
        self.n = n
        self.count = 0
        for name in ("fsync", "rename", "replace"):
            setattr(os, name, self.counting(getattr(os, name)))
        true_open = pathlib.Path.open

        def open_counting(path, mode="r", *args, **kwargs):
            file = true_open(path, mode, *args, **kwargs)
            return Halving(file, self) if mode in ("wb", "ab") else file

        pathlib.Path.open = open_counting

    def counting(self, function):
        def call(*args, **kwargs):
            self.step()
            return function(*args, **kwargs)

        return call

    def step(self, first=lambda: None):
        self.count += 1
        if self.count == self.n:
            first()
            os.kill(os.getpid(), signal.SIGKILL)


class Halving:
    def __init__(self, file, killer):
        self.file, self.killer = file, killer

    def write(self, data):
        def half():
            self.file.write(data[: len(data) // 2])
            self.file.flush()

        self.killer.step(half)
        return self.file.write(data)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def __getattr__(self, name):
        return getattr(self.file, name)


def in_a_child(function):
    """Run a function in a forked process; return its exit signal, and its result or None."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(reader)
        try:
            os.write(writer, json.dumps(function()).encode())
        except BaseException as error:
            os.write(writer, json.dumps(f"{type(error).__name__}: {error}"[:3000]).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        result = pipe.read()
    _, status = os.waitpid(child, 0)
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0, json.loads(result) if result else None


def main(folder):
    def undisturbed():
        killer = KillAt(0)
        return fit(folder / "undisturbed"), killer.count

    _, (digest, steps) = in_a_child(undisturbed)
    ledger = (folder / "undisturbed" / "ledger.jsonl").read_bytes()
    found = []
    for n in range(1, steps + 1, 5):

        def killed(n=n):
            KillAt(n)
            return fit(folder / str(n))

        signal_number, _ = in_a_child(killed)
        checkpoints = folder / str(n) / "checkpoints"
        left = sorted(p.name for p in checkpoints.iterdir()) if checkpoints.exists() else []
        _, resumed = in_a_child(lambda n=n: fit(folder / str(n), ckpt_path="last"))
        path = folder / str(n) / "ledger.jsonl"
        same_ledger = path.exists() and path.read_bytes() == ledger
        found.append({"signal": signal_number, "left": left, "digest": resumed, "same_ledger": same_ledger})
    print(json.dumps({"digest": digest, "kills": found}))


if __name__ == "__main__":
    gc.freeze()
    main(Path(sys.argv[1]))
