"""Steps of secure aggregation that no server of this package asks for: one clear error, and no memory."""

import tracemalloc

import pytest
from flwr.app import ConfigRecord

from lightning_fl_ext import LightningFLError, client_app

DEVICE = {"accelerator": "cpu", "devices": 1}
HONEST = {"step": "announce", "session": b"s" * 16, "asked": 3, "threshold": 2, "count-key": "num-examples"}

ODD = {
    "clients: a text": ({"asked": "3"}, "`asked`: expected a whole number from 0 to 131072, got '3'"),
    "clients: 2^70": ({"asked": 2**70}, "`asked`: expected a whole number from 0 to 131072, got 1180591"),
    "clients: two": ({"asked": 2}, "needs at least 3 clients"),
    "threshold: -1": ({"threshold": -1}, "`threshold`: expected a whole number"),
    "threshold: one": ({"threshold": 1}, "must be a majority"),
    "a session that is a number": ({"session": 2**31}, "`session`: expected texts or bytes, got 2147483648"),
    "no session": ({"session": None}, r"must say \['session'\]"),
    "a norm that is a text": ({"max-update-norm": "9"}, "`max-update-norm`: expected a finite number"),
    "an endless norm": ({"max-update-norm": 10**400}, "`max-update-norm`: expected a finite number"),
    "a server's key that is a size": ({"step": "share", "server-key": 2**40}, "`server-key`: expected texts"),
    "keys that are sizes": ({"step": "share", "keys": [2**40]}, "`keys`: expected texts or bytes"),
    "a million ids": ({"step": "share", "ids": ["a"] * 10**6}, "`ids`: expected at most 131072 entries"),
    "an endless id": ({"step": "share", "ids": ["a" * 10**6]}, "`ids`: expected a text of at most 1024"),
    "an id that is no text": (
        {"step": "share", "ids": ["\ud800"]},
        "`ids`: expected a text of at most 1024",
    ),
    "survivors by name": ({"step": "unmask", "survivors": [b"a"]}, "`survivors`: expected numbers, got b'a'"),
    "a step of its own": ({"step": "reveal"}, "takes no part in the round"),
}


@pytest.fixture
def ask(kit):
    client = client_app(kit.Lit, lambda _: kit.loader(), DEVICE)

    def send(arrays, **changed):
        message = kit.message(arrays)
        message.metadata.message_type = "train.secure"
        step = {k: v for k, v in {**HONEST, **changed}.items() if v is not None}
        message.content["secure"] = ConfigRecord(step)
        reply = client(message, kit.context(2, of=4))
        assert set(reply.content) <= {"secure", "client"}
        if "refused" in reply.content["secure"]:
            raise LightningFLError(reply.content["secure"]["got"])
        return reply

    return send


@pytest.mark.parametrize("case", sorted(ODD))
def test_a_step_that_no_server_asks_for_is_refused_by_key_in_bounded_memory(kit, ask, case):
    changed, says = ODD[case]
    source = kit.arrays_of(kit.fresh_module(1))
    tracemalloc.start()
    try:
        with pytest.raises(LightningFLError, match=says) as refused:
            ask(source, **changed)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 50e6
    assert len(str(refused.value)) < 400


def test_an_honest_step_is_answered(kit, ask):
    reply = ask(kit.arrays_of(kit.fresh_module(1)))
    assert set(reply.content["secure"]) >= {"mask-key", "share-key", "signature"}


def test_a_step_without_weights_is_refused(ask):
    with pytest.raises(LightningFLError, match="must hold exactly one ArrayRecord"):
        ask(None)
