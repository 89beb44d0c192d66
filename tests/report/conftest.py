"""Ledgers to read: written by hand, and by the server tests' toy federation."""

import importlib.util
import logging
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from lightning_fl_ext.server.durability.ledger import GENESIS, make_line
from lightning_fl_ext.server.record import RoundRecord, SiteEvaluation
from lightning_fl_ext.server.screening.rejection import Reason, Rejection

FINGERPRINT = {"strategy": "FedAdam", "strategy.eta": 0.1, "seed": 3, "model.w": "float32[3]"}


@pytest.fixture(scope="session")
def toy():
    name = "lightning_fl_ext_toy_federation"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[1] / "server" / "_toy.py")
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


@pytest.fixture(autouse=True)
def _quiet_flower():
    logging.getLogger("flwr").setLevel(logging.ERROR)


@pytest.fixture(scope="session")
def write_ledger():
    """From records to a folder with their ledger."""

    def write(folder, records, fingerprint=None, finished=True, test=None):
        folder.mkdir(parents=True, exist_ok=True)
        events = [("start", {"fingerprint": fingerprint or FINGERPRINT})]
        events += [
            ("round", {"round": r.to_json(), "accepted": [entry(c) for c in r.accepted]}) for r in records
        ]
        if finished:
            told = {"test": test.to_json()} if test is not None else {}
            events.append(("end", {"rounds": len(records), "digest": "d" * 64, **told}))
        head, lines = GENESIS, []
        for index, (event, content) in enumerate(events):
            head, line = make_line(head, index, event, content)
            lines.append(line)
        (folder / "ledger.jsonl").write_bytes(b"".join(lines))
        return folder

    def entry(client):
        return {"client_id": client, "num_examples": 8, "score": "1.5", "digest": "a" * 64, "file": ""}

    return write


@pytest.fixture(scope="session")
def records():
    """Six rounds of four clients: one is left out in round 2, round 4 is void, metrics are missing or NaN."""
    clients = ("a", "b", "c", "d")

    def record(number):
        rejected = ()
        if number == 2:
            rejected = (Rejection("b", 2, Reason.NOT_FINITE, "net.0.weight", "finite values", "nan"),)
        if number == 4:
            rejected = tuple(Rejection(c, 4, Reason.NO_REPLY, got="Node unavailable") for c in "abc")
        if number == 5:
            rejected = (Rejection("d", 5, Reason.METRIC, "val_loss", "a number", "a list"),)
        out = {r.client_id for r in rejected if r.reason is not Reason.METRIC}
        metrics = {
            "server_accuracy": 0.5 + 0.08 * number,
            "val_loss": float("nan") if number == 3 else 2.0 / number,
            "train_loss": 1.5 / number,
            "server_gates_open": 0.9 - 0.02 * number,
            "bytes_up": 4000.0 * (4 - len(out)),
            "bytes_down": 16000.0,
            "clients_accepted": 4.0 - len(out),
            "clients_rejected": float(len(out)),
        }
        if number == 6:
            del metrics["train_loss"]
        return RoundRecord(
            number,
            sampled=clients,
            accepted=tuple(c for c in clients if c not in out),
            rejected=rejected,
            digest=f"{number:064x}",
            metrics=metrics,
            void=number == 4,
        )

    return [record(number) for number in range(1, 7)]


@pytest.fixture(scope="session")
def site_records(records):
    """The same rounds, with what four sites made of the model; site d tells nothing, site c falls behind."""

    def at(record):
        n = record.server_round
        values = {"a": 0.5 + 0.07 * n, "b": 0.52 + 0.06 * n, "c": 0.4 + 0.01 * n}
        sites = {c: SiteEvaluation(30, {"val_f1": v, "val_loss": 1 - v / 2}) for c, v in values.items()}
        f1 = sum(values.values()) / 3
        metrics = {**record.metrics, "val_f1": f1, "val_auroc": f1 + 0.01, "val_auroc_epoch": f1 + 0.01}
        return replace(record, sites=sites | {"d": SiteEvaluation(12)}, metrics=metrics)

    return [at(record) for record in records]
