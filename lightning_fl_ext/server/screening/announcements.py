"""The checks of what clients announce in a secure round, before any update is seen."""

from __future__ import annotations

from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict

from lightning_fl_ext.metrics import DamagedMetricPack
from lightning_fl_ext.metrics.summing import LONGEST_ENTRY, names_in
from lightning_fl_ext.results import Arrays, ClientUpdate
from lightning_fl_ext.secure import Announcement
from lightning_fl_ext.server.screening.checks import ValueLimits
from lightning_fl_ext.server.screening.rejection import Reason, Rejected
from lightning_fl_ext.server.screening.values import screen_name
from lightning_fl_ext.wire.client_record import client_record, declared_id
from lightning_fl_ext.wire.secure_record import REFUSED, SECURE
from lightning_fl_ext.wire.typed_records import records_of

REMEDY = (
    "no half of secure aggregation in its app: use `client_app` of this package, or"
    " `@app.train('secure', mods=[SecureAggregation()])`"
)


def screen_announcement(
    reply: Message, client_id: str, server_round: int, limits: ValueLimits, like: Arrays
) -> ClientUpdate:
    """Check that a reply announces keys and holds nothing of the update.

    Takes what :func:`screen_train_reply` takes; limits and weights do not matter here: the client checks.

    Raises:
        Rejected: A check failed, on this side or on the client's.
    """
    if (answered := client_record(reply.content).get("server-round", server_round)) != server_round:
        raise Rejected(Reason.STALE, "server-round", str(server_round), str(answered))
    step_record(reply.content)
    if records_of(reply.content, ArrayRecord):
        raise Rejected(Reason.SECURE, "arrays", "keys alone", "arrays in the plain, which are not looked at")
    read_announcement(reply.content)
    return ClientUpdate({}, 0, client_id=client_id, server_round=server_round)


def step_record(content: RecordDict) -> ConfigRecord:
    """Give what a reply says to a step.

    Raises:
        Rejected: Nothing, or that the client refuses; its reason stands.
    """
    record = content.get(SECURE)
    if not isinstance(record, ConfigRecord):
        raise Rejected(Reason.SECURE, SECURE, "an answer to a step of a secure round", REMEDY)
    if REFUSED in record:
        told = {name: str(record.get(name, "")) for name in (REFUSED, "key", "expected", "got")}
        known = set(map(str, Reason)) - {Reason.NO_REPLY, Reason.NOT_SAMPLED, Reason.DUPLICATE}
        reason = Reason(told[REFUSED]) if told[REFUSED] in known else Reason.SECURE
        got = told["got"] or "something else, by its own check; it sent nothing"
        raise Rejected(reason, told["key"], told["expected"], got)
    return record


def read_announcement(content: RecordDict) -> tuple[Announcement, bool, list[str]]:
    """Read a client's keys, whether its update needs two words a number, and what of its metrics is summed.

    Raises:
        Rejected: It refuses, something is missing or of another kind, or it speaks for another client.
    """
    record = step_record(content)
    keys = [record.get(name) for name in ("mask-key", "share-key", "signature")]
    client, wide, names = (record.get(name) for name in ("client-id", "wide", "metrics"))
    whole = all(isinstance(key, bytes) for key in keys) and isinstance(wide, bool)
    if not whole or not isinstance(client, str) or not isinstance(names, list):
        raise Rejected(Reason.UNDECODABLE, SECURE, "keys for a secure round", "something else")
    if client != (declared := declared_id(content)):
        raise Rejected(Reason.NOT_SAMPLED, "client-id", f"keys of `{declared}`", f"keys of `{client}`")
    for entry in names:
        screen_name(entry, LONGEST_ENTRY)
    try:
        logged = names_in(map(str, names))
    except DamagedMetricPack as error:
        raise Rejected(Reason.UNDECODABLE, "metrics", "entries of a sum of metrics", str(error)) from None
    for name in logged:
        screen_name(name, LONGEST_ENTRY)
    return Announcement(client, *keys), bool(wide), list(map(str, names))  # type: ignore[arg-type]
