"""What both sides of secure aggregation decode, with tags that are right where a liar could make them so."""

import copy
import sys
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import torch
from _mutations import SMALL, damage_bytes, damage_json
from _target import Target
from flwr.app import ConfigRecord, RecordDict
from torchmetrics import SumMetric
from torchmetrics.classification import MulticlassConfusionMatrix

from lightning_fl_ext import LightningFLError
from lightning_fl_ext.client.instruction_limits import check_step
from lightning_fl_ext.metrics import pack_metrics
from lightning_fl_ext.metrics.stage_metrics import Scalar, StageMetrics
from lightning_fl_ext.metrics.summing import common_entries, read_sum, size_of, summable
from lightning_fl_ext.secure import Roster, SecureClient, SecureServer, Terms
from lightning_fl_ext.server.screening.announcements import read_announcement, step_record
from lightning_fl_ext.server.screening.rejection import Rejected
from lightning_fl_ext.server.screening.secure_steps import (
    masked_words,
    screen_answer,
    screen_commitment,
    screen_keys,
)
from lightning_fl_ext.wire import to_record

NUMBER, LIAR, WORDS = 5, 2, 8
NAMES = [f"site-{i}" for i in range(NUMBER)]
STEPS = ("share", "mask", "confirm", "unmask")
TERMS = Terms(b"s" * 16, NUMBER, 4)


def sign(text):
    """Stand for a signature, which others check and the code that takes it does not."""
    return text[:1] * 64


class Round:
    """An honest round, stopped before the liar's answer to each step."""

    def __init__(self):
        clients = [SecureClient(name, TERMS) for name in NAMES]
        announced = [client.announce() for client in clients]
        self.announcement = {
            "client-id": NAMES[LIAR],
            "mask-key": announced[LIAR].mask_key,
            "share-key": announced[LIAR].share_key,
            "signature": b"",
            "wide": False,
            "metrics": ['["mean", "train", "loss"]'],
        }
        self.server = server = SecureServer(TERMS, announced, False, ["loss"])
        self.before, self.honest, self.asked, self.liar = {}, {}, {"share": server.roster.to_dict()}, {}
        order = [i for i in range(NUMBER) if i != LIAR] + [LIAR]
        for i in order:
            self.stop("share", i, clients[i])
            clients[i], message = clients[i].share(server.roster)
            self.note("share", i, message)
            server.take_shares(i, message)
        for i in order:
            self.stop("mask", i, clients[i])
            words = np.arange(WORDS, dtype=np.uint64)
            clients[i], message = clients[i].mask(server.mailbox(i), words)
            self.note("mask", i, message)
            self.words = words
            server.take_masked(i, message, words)
        request = server.request()
        for i in order:
            self.stop("confirm", i, clients[i])
            self.asked["confirm"] = request
            clients[i], message = clients[i].confirm(request, sign)
            self.note("confirm", i, message)
            server.take_confirmation(i, message)
        request = server.signed_request()
        for i in order:
            self.stop("unmask", i, clients[i])
            self.asked["unmask"] = request
            message = clients[i].unmask(request)
            self.note("unmask", i, message)
            server.take_unmask(i, message)
        self.tagger = clients[LIAR]

    def stop(self, step, i, client):
        if i == LIAR:
            self.liar[step] = client
            self.asked.setdefault(step, self.server.mailbox(i))
            self.before[step] = self.state()

    def note(self, step, i, message):
        if i == LIAR:
            self.honest[step] = message

    def state(self):
        kept = {k: v for k, v in vars(self.server).items() if k not in ("roster", "_key")}
        return copy.deepcopy(kept)

    def back_to(self, step):
        vars(self.server).update(copy.deepcopy(self.before[step]))


ROUND = Round()


def damaged(message, rng):
    message = dict(message)
    for _ in range(rng.choice((1, 1, 2))):
        name = rng.choice([*message, "more"])
        value = message.get(name, b"")
        kind = rng.random()
        if kind < 0.1:
            message.pop(name, None)
        elif kind < 0.5 and isinstance(value, bytes):
            message[name] = damage_bytes(value, rng)
        elif kind < 0.7 and isinstance(value, list) and value:
            value = list(value)
            at = rng.randrange(len(value))
            if isinstance(value[at], int):
                value[at] = rng.choice((-1, 0, 1, 4, 5, 2**31, 2**63 - 1))
            elif isinstance(value[at], bytes):
                value[at] = damage_bytes(value[at], rng)
            message[name] = value[:at] + value[at : at + 1] * rng.choice((0, 1, 2, 500)) + value[at + 1 :]
        else:
            value = rng.choice((*SMALL[1:], b"", bytes(32), b"x" * 5000))
            message[name] = value if rng.random() < 0.7 else [value]
    return message


def make_answer(rng):
    step = rng.choice(STEPS)
    message = damaged(ROUND.honest[step], rng)
    words = ROUND.words
    if step == "mask" and rng.random() < 0.5:
        words = rng.choice((words[:3], words.astype(np.int64), words.reshape(2, -1), words[::-1].copy()))
    if rng.random() < 0.8:
        plain = {name: value for name, value in message.items() if name != "tag"}
        with suppress(Exception):  # what cannot be tagged keeps the tag it has
            kind, vector = ("masked", words) if step == "mask" else (step, None)
            message = ROUND.tagger._tagged(kind, plain, vector)
    content = RecordDict({"secure": ConfigRecord(message)})
    if step == "mask":
        content["masked"] = to_record({"masked": words}, ["masked"])
    return step, content


def take_answer(given):
    step, content = given
    server = ROUND.server
    ROUND.back_to(step)
    screen_answer(content, NUMBER, WORDS if step == "mask" else 0)
    record = step_record(content)
    if step == "share":
        screen_commitment(record)
        server.take_shares(LIAR, record)
        return [server.mailbox(i) for i in range(NUMBER)]
    if step == "mask":
        return server.take_masked(LIAR, record, masked_words(content, WORDS))
    if step == "confirm":
        server.take_confirmation(LIAR, record)
        return server.signed_request()
    server.take_unmask(LIAR, record)
    return server.unmasked()


def make_announcement(rng):
    told = damaged(ROUND.announcement, rng)
    return RecordDict({"secure": ConfigRecord(told), "client": ConfigRecord({"client-id": NAMES[LIAR]})})


def take_announcement(content):
    screen_answer(content, NUMBER)
    announcement, _, names = read_announcement(content)
    screen_keys(announcement)
    return announcement, names


def make_stage():
    metrics = torch.nn.ModuleDict({"total": SumMetric(), "matrix": MulticlassConfusionMatrix(3)})
    metrics["total"].update(torch.tensor([1.0, 2.0]))
    metrics["matrix"].update(torch.tensor([0, 1, 2]), torch.tensor([0, 1, 1]))
    names = {"val_total": ("total",), "val_matrix": ("matrix",)}
    return StageMetrics(pack_metrics(metrics, num_examples=3), names, {"val_loss": Scalar("mean", 3)})


ENTRIES = list(summable({"loss": 0.5, "val_loss": 0.5}, 3, {"validate": make_stage()}, clients=3))


def make_entries(rng):
    entries = list(ENTRIES)
    for at in rng.sample(range(len(entries)), rng.choice((1, 1, 3))):
        entries[at] = damage_json(entries[at].encode(), rng).decode(errors="surrogateescape")
    return entries


def sum_entries(entries):
    """Sum them over two clients that say the same: what one alone says is not summed."""
    common, _ = common_entries([entries, entries])
    size = sum(map(size_of, common))
    found = read_sum(common, [3] * size) if size < 10_000 else None
    return found, [size_of(entry) for entry in entries]


def make_request(rng):
    step = rng.choice(STEPS)
    return step, damaged(ROUND.asked[step], rng)


def obey(given):
    step, message = given
    client = ROUND.liar[step]
    check_step(message)
    if step == "share":
        return client.share(Roster.from_dict(message))
    if step == "mask":
        return client.mask(message, np.arange(WORDS, dtype=np.uint64))
    if step == "confirm":
        return client.confirm(message, sign)
    return client.unmask(message, lambda roster, text, signatures: None)


def fits_a_record(make):
    """Try again until Flower's records take it."""

    def again(rng):
        while True:
            try:
                return make(rng)
            except (TypeError, ValueError):
                continue

    return again


SECURE_TARGETS = {
    "announcements": Target(fits_a_record(make_announcement), take_announcement, (Rejected,)),
    "secure answers": Target(fits_a_record(make_answer), take_answer, (Rejected, LightningFLError)),
    "secure requests": Target(make_request, obey),
    "sum entries": Target(make_entries, sum_entries),
}
