"""One client's answer to any step of a secure round is bounded before it is looked at."""

import tracemalloc

import _toy as toy
import numpy as np
import pytest
from _secure import STEPS, make_app, step_of
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord

from lightning_fl_ext import ExactFedAvg, LocalGrid, SecureFedAvg
from lightning_fl_ext.server import Reason
from lightning_fl_ext.server.screening.rejection import Rejected
from lightning_fl_ext.server.screening.secure_steps import masked_words, screen_answer
from lightning_fl_ext.wire import to_record

BAD = "02"


def fit(alter, step, strategy=None, app=None):
    def faults(instruction, reply):
        if step_of(instruction) == step and toy.client_of(reply) == BAD:
            alter(reply.content)
        return reply

    grid = LocalGrid(app or make_app(), 5, faults=faults)
    return toy.make_trainer(strategy or SecureFedAvg(), max_rounds=1).fit(toy.Net(), grid)


@pytest.fixture(scope="module")
def without_it():
    """The digest of the exact mean over the others."""

    def lost(instruction, reply):
        return None if toy.is_train(instruction) and toy.client_of(reply) == BAD else reply

    grid = LocalGrid(toy.make_app(), 5, faults=lost)
    strategy = ExactFedAvg(fraction_evaluate=0.0)
    return toy.make_trainer(strategy, max_rounds=1).fit(toy.Net(), grid).digest


def config(**more):
    return lambda content: content.__setitem__("secure", ConfigRecord({**content["secure"], **more}))


def record(name, made):
    return lambda content: content.__setitem__(name, made)


LARGE = {
    "a long text": (config(more="x" * 10**6), Reason.OVER_LIMIT),
    "many entries": (config(**{f"k{i}": i for i in range(2000)}), Reason.OVER_LIMIT),
    "a long list": (config(more=[1] * 10**5), Reason.OVER_LIMIT),
    "a long name": (config(**{"x" * 10**6: 1}), Reason.NAME),
    "a name that cannot be written": (config(**{"\ud800": 1}), Reason.NAME),
    "an endless number": (config(more=10**5000), Reason.MAGNITUDE),
    "many records": (
        lambda content: content.update({f"r{i}": ConfigRecord() for i in range(100)}),
        Reason.OVER_LIMIT,
    ),
    "many metrics": (record("m", MetricRecord({f"m{i}": 1.0 for i in range(5000)})), Reason.OVER_LIMIT),
    "many arrays": (
        record("a", ArrayRecord({f"a{i}": Array("u1", (0,), "x", b"") for i in range(5000)})),
        Reason.OVER_LIMIT,
    ),
}


@pytest.mark.parametrize("step", STEPS[:3])
@pytest.mark.parametrize("what", sorted(LARGE))
def test_too_large_an_answer_is_left_out_by_name_and_the_round_goes_on(without_it, step, what):
    alter, reason = LARGE[what]
    result = fit(alter, step)
    assert [(r.client_id, r.reason) for r in result.rejected] == [(BAD, reason)]
    assert result.digest == without_it


@pytest.mark.parametrize("what", sorted(LARGE))
def test_too_large_shares_for_unmasking_are_passed_over_and_the_others_suffice(what):
    result = fit(LARGE[what][0], "unmask")
    assert result.rounds[0].accepted == ("00", "01", "02", "03", "04")


def test_the_servers_names_do_not_come_out_of_the_sum():
    app = make_app(metrics=lambda *_: {"server_accuracy": 0.99, "clients_accepted": 99.0, "train_loss": 0.5})
    measured = fit(lambda content: None, "announce", app=app).rounds[0].metrics
    assert measured["train_loss"] == 0.5
    assert measured["clients_accepted"] == 5
    assert "server_accuracy" not in measured


ANNOUNCED = {
    "a key without an inverse": (config(**{"mask-key": bytes(32)}), Reason.SECURE, "mask-key"),
    "a short key": (config(**{"share-key": b"x"}), Reason.SECURE, "share-key"),
    "a long signature": (config(signature=b"x" * 65), Reason.SECURE, "signature"),
    "a list for a key": (config(**{"mask-key": [1, 2]}), Reason.UNDECODABLE, "secure"),
    "a number for names": (config(metrics=3), Reason.UNDECODABLE, "secure"),
    "another client's id": (config(**{"client-id": "00"}), Reason.NOT_SAMPLED, "client-id"),
    "names that turn text round": (config(metrics=["\u202eloss"]), Reason.NAME, "\\u202eloss"),
    "a million names": (config(metrics=[f"m{i}" for i in range(10**6)]), Reason.OVER_LIMIT, "secure"),
}


@pytest.mark.parametrize("what", sorted(ANNOUNCED))
def test_keys_that_nobody_can_use_are_left_out_before_others_see_them(without_it, what):
    alter, reason, key = ANNOUNCED[what]
    result = fit(alter, "announce")
    assert [(r.client_id, r.reason, r.key) for r in result.rejected] == [(BAD, reason, key)]
    assert result.digest == without_it


def test_two_that_announce_the_same_key_are_left_out_and_the_round_goes_on():
    kept = {}

    def faults(instruction, reply):
        if step_of(instruction) == "announce" and toy.client_of(reply) in ("01", "03"):
            key = kept.setdefault("key", reply.content["secure"]["share-key"])
            config(**{"share-key": key})(reply.content)
        return reply

    strategy = SecureFedAvg(threshold=0.6)
    result = toy.make_trainer(strategy, max_rounds=1).fit(toy.Net(), LocalGrid(make_app(), 5, faults=faults))
    assert result.rounds[0].accepted == ("00", "02", "04")
    assert [(r.client_id, r.reason) for r in result.rejected] == [
        ("01", Reason.SECURE),
        ("03", Reason.SECURE),
    ]


@pytest.mark.parametrize("commitment", [None, b"", 3, [1, 2]])
def test_shares_that_cannot_be_checked_are_left_out_before_anybody_masks_with_them(
    without_it, monkeypatch, commitment
):
    from lightning_fl_ext.secure.client import SecureClient

    tagged = SecureClient._tagged

    def without(self, step, message, words=None):
        message = dict(message)
        if step == "share" and self.client_id == BAD:
            message.pop("commitment")
            message |= {} if commitment is None else {"commitment": commitment}
        return tagged(self, step, message, words)

    monkeypatch.setattr(SecureClient, "_tagged", without)
    result = fit(lambda content: None, "share")
    assert [(r.client_id, r.key) for r in result.rejected] == [(BAD, "commitment")]
    assert result.digest == without_it


def vector(words, **about):
    packed = to_record({"masked": words}, bare=["masked"])["masked"]
    for name, value in about.items():
        setattr(packed, name, value)
    return {"masked": ArrayRecord({"masked": packed})}


@pytest.mark.parametrize(
    "content",
    [
        vector(np.zeros(4, np.uint64)),
        vector(np.zeros(5, np.int64)),
        vector(np.zeros(5, np.uint64), dtype="float64"),
        vector(np.zeros(4, np.uint64), shape=(2**40,)),
        {"masked": ArrayRecord()},
        {
            "masked": ArrayRecord(
                {"masked": Array("uint64", (5,), "x", b""), "more": Array("u1", (0,), "x", b"")}
            )
        },
        {"masked": ConfigRecord()},
        {},
    ],
)
def test_another_vector_than_was_asked_for_is_refused_by_what_it_says_of_itself(content):
    with pytest.raises(Rejected, match="secure-aggregation, `masked`: expected a masked vector of 5 words"):
        masked_words(content, 5)


def test_an_answer_is_bounded_without_memory_of_its_own():
    names = ArrayRecord({f"array-{i}": Array("uint64", (1,), "x", bytes(8)) for i in range(50_000)})
    entries = ConfigRecord({"sealed": b"x" * 2**24, "to": list(range(10**5))})
    for content in ({"masked": names}, {"secure": entries}):
        tracemalloc.start()
        try:
            with pytest.raises(Rejected):
                screen_answer(content, members=10, words=5)
            assert tracemalloc.get_traced_memory()[1] < 2**20
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize("members", [3, 40, 2000])
def test_what_a_step_calls_for_passes_however_many_take_part(members):
    told = {"sealed": b"x" * (48 * members), "to": list(range(members)), "each": [b"x" * 48] * members}
    words = to_record({"masked": np.zeros(9, np.uint64)}, bare=["masked"])
    screen_answer({"secure": ConfigRecord(told), "masked": words}, members, words=9)
