"""What clients and the server refuse, and whom they name."""

import secrets
from dataclasses import replace

import numpy as np
import pytest

from lightning_fl_ext.secure import SecureAggregationError, SecureClient, SecureServer, Terms
from lightning_fl_ext.secure.keys import SEALED_BYTES
from lightning_fl_ext.secure.messages import parts
from lightning_fl_ext.secure.roster import Roster

TERMS = Terms(b"now." * 4, 4, 3)


class Federation:
    """Four clients and a server, taken to any step."""

    def __init__(self, terms=TERMS, names="abcd"):
        self.clients = {n: SecureClient(n, terms) for n in names}
        self.server = SecureServer(terms, [c.announce() for c in self.clients.values()])
        self.roster = self.server.roster
        self.words = {n: np.full(4, i, np.uint64) for i, n in enumerate(names)}
        self.shared, self.masked = {}, {}

    def share(self):
        for i, n in enumerate(self.clients):
            self.clients[n], self.shared[n] = self.clients[n].share(self.roster)
            self.server.take_shares(i, self.shared[n])
        return self

    def mask(self, *names):
        for i, n in enumerate(self.clients):
            if n in (names or self.clients):
                self.clients[n], message = self.clients[n].mask(self.server.mailbox(i), self.words[n])
                self.masked[n] = message
                self.server.take_masked(i, message, self.words[n])
        return self


def refuses(match):
    return pytest.raises(SecureAggregationError, match=match)


@pytest.mark.parametrize("asked", [1, 2])
def test_a_sum_of_two_is_refused(asked):
    with refuses("at least 3 clients"):
        SecureClient("a", Terms(b"", asked, asked)).announce()


@pytest.mark.parametrize("threshold", [0, 1, 2, 5])
def test_a_threshold_that_is_no_majority_is_refused(threshold):
    with refuses("majority"):
        SecureClient("a", replace(TERMS, threshold=threshold)).announce()


# The roster


@pytest.mark.parametrize("key", ["mask_key", "share_key"])
def test_a_client_refuses_altered_keys_of_its_own(key):
    f = Federation()
    a, *others = f.roster.members
    altered = replace(f.roster, members=(replace(a, **{key: secrets.token_bytes(32)}), *others))
    with refuses("client `a` other keys than it announced"):
        f.clients["a"].share(altered)


def test_a_client_refuses_keys_swapped_with_another():
    f = Federation()
    a, b, *others = f.roster.members
    swapped = (replace(b, client_id="a"), replace(a, client_id="b"), *others)
    for n in "ab":
        with refuses(f"client `{n}` other keys"):
            f.clients[n].share(replace(f.roster, members=swapped))


def test_a_client_refuses_its_keys_of_the_round_before():
    before, now = Federation(), Federation()
    with refuses("client `a` other keys"):
        now.clients["a"].share(before.roster)


def test_a_client_refuses_the_roster_of_another_round():
    f = Federation()
    other = replace(f.roster, terms=replace(TERMS, session=b"then" * 4))
    with refuses("another round"):
        f.clients["a"].share(other)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: m[:2], "3 to 4 clients"),
        (lambda m: m[1:], "`a` is not in the roster"),
        (lambda m: (m[1], m[0], *m[2:]), "sorted by id"),
        (lambda m: (*m[:3], replace(m[3], mask_key=m[2].mask_key)), "keys of client `c`"),
        (lambda m: (*m[:3], replace(m[3], mask_key=b"short")), "keys of client `d`"),
    ],
)
def test_a_client_refuses_a_roster_that_does_not_fit(change, says):
    f = Federation()
    with refuses(says):
        f.clients["a"].share(replace(f.roster, members=change(f.roster.members)))


def test_a_client_refuses_a_key_that_agrees_on_nothing():
    f = Federation()
    low_order = replace(f.roster.members[1], share_key=bytes(32))
    members = (f.roster.members[0], low_order, *f.roster.members[2:])
    with refuses("key of client `b`"):
        f.clients["a"].share(replace(f.roster, members=members))


def test_what_is_no_roster_is_refused():
    data = Federation().roster.to_dict()
    for change in ({"ids": ["a"]}, {"server-key": 3.5}, {"keys": None}, {"signatures": [2**40] * 4}):
        with refuses("expected the roster"):
            Roster.from_dict({**data, **change})


# Sealed shares


@pytest.mark.parametrize("what", ["altered", "swapped", "replayed"])
def test_a_client_names_whose_share_is_not_what_was_sealed_for_it(what):
    before, f = Federation().share(), Federation().share()
    mailbox = f.server.mailbox(0)  # of b, c and d
    b, c, d = parts(mailbox, "sealed", SEALED_BYTES, 3)
    mailbox["sealed"] = b"".join(
        {
            "altered": [b, bytes([c[0] ^ 1]) + c[1:], d],
            "swapped": [b, d, c],
            "replayed": [b, parts(before.server.mailbox(0), "sealed", SEALED_BYTES, 3)[1], d],
        }[what]
    )
    with refuses("share of client `c` is altered, or of another"):
        f.clients["a"].mask(mailbox, f.words["a"])
    assert (f.words["a"] == 0).all()


def test_a_client_does_not_mask_with_too_few():
    f = Federation().share()
    box = f.server.mailbox(0)
    box = {"from": box["from"][:1], "sealed": box["sealed"][:SEALED_BYTES]}
    with refuses("2 clients near this one"):
        f.clients["a"].mask(box, f.words["a"])


@pytest.mark.parametrize(
    "change",
    [{"from": [1, 1, 2]}, {"from": ["b"]}, {"sealed": []}, {"sealed": b""}, {"from": [0, 1, 2]}],
)
def test_a_client_refuses_a_mailbox_that_does_not_fit(change):
    f = Federation().share()
    with refuses("neighbours|a list of clients|expected 3 times 48 bytes"):
        f.clients["a"].mask({**f.server.mailbox(0), **change}, f.words["a"])


# Steps out of turn


def test_a_client_takes_every_step_once_and_in_turn():
    f = Federation()
    with refuses("has not shared"):
        f.clients["a"].mask({}, f.words["a"])
    f.share()
    with refuses("shared its keys in this round already"):
        f.clients["a"].share(f.roster)
    with refuses("took no part"):
        f.clients["a"].unmask({"survivors": [0, 1, 2], "dropped": [3]})
    f.mask()
    with refuses("masked its update in this round already"):
        f.clients["a"].mask(f.server.mailbox(0), f.words["a"])


# The request to unmask


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        ({"survivors": [0, 1, 2, 3], "dropped": [3]}, "both kinds"),
        ({"survivors": [0, 1, 2, 2], "dropped": [3]}, "each once"),
        ({"survivors": [0, 1], "dropped": [2, 3]}, "2 survivors are under the threshold of 3"),
        ({"survivors": [1, 2, 3], "dropped": [0]}, "not one of this client's"),
        ({"survivors": [0, 1, 2, 9], "dropped": [3]}, "not one of this client's"),
        ({"survivors": [0, 1, 2], "dropped": []}, "nothing of a neighbour"),
        ({"survivors": [0, 1, 2]}, "expected a list"),
        ({"survivors": [0, 1, -2], "dropped": [3]}, "expected a list"),
    ],
)
def test_a_client_refuses_to_unmask_what_is_not_a_sum_of_its_round(request_, says):
    f = Federation().share().mask()
    with refuses(says):
        f.clients["a"].unmask(request_)


def test_a_client_gives_one_kind_of_share_of_each():
    f = Federation().share().mask("a", "b", "c")
    answer = f.clients["a"].unmask(f.server.request())
    assert (answer["survivors"], answer["dropped"]) == ([0, 1, 2], [3])
    assert len(answer["self-shares"]) == 3 * 16
    assert answer["key-shares"] == f.clients["a"].shares[3][16:]


# The server


@pytest.mark.parametrize("step", ["shares", "vector", "unmask"])
@pytest.mark.parametrize("what", ["altered", "swapped", "replayed", "twice"])
def test_the_server_refuses_what_is_not_a_clients_own_of_this_round(step, what):
    before, f = Federation(), Federation()
    messages = {}
    for federation in (before, f):
        got = messages[id(federation)] = {}
        for n in "abcd":
            federation.clients[n], got[n] = federation.clients[n].share(federation.roster)
        if step == "shares":
            continue
        for i, n in enumerate("abcd"):
            federation.server.take_shares(i, got[n])
        for i, n in enumerate("abcd"):
            federation.clients[n], got[n] = federation.clients[n].mask(
                federation.server.mailbox(i), federation.words[n]
            )
        if step == "vector":
            continue
        for i, n in enumerate("abcd"):
            federation.server.take_masked(i, got[n], federation.words[n])
        request = federation.server.request()
        for n in "abcd":
            got[n] = federation.clients[n].unmask(request)
    source = before if what == "replayed" else f
    who = "c" if what == "swapped" else "b"
    message, words = dict(messages[id(source)][who]), source.words[who].copy()
    take = {
        "shares": lambda m, w: f.server.take_shares(1, m),
        "vector": lambda m, w: f.server.take_masked(1, m, w),
        "unmask": lambda m, w: f.server.take_unmask(1, m),
    }[step]
    if what == "altered":
        if step == "vector":
            words[0] += 1
        else:
            field = "sealed" if step == "shares" else "self-shares"
            message[field] = bytes(len(message[field]))
    if what == "twice":
        take(message, words)
    with refuses("answered twice" if what == "twice" else "altered, or of another client or round"):
        take(message, words)


def test_below_the_threshold_nothing_is_asked():
    f = Federation().share().mask("a", "b")
    with refuses("2 masked updates, and the threshold is 3 of 4 clients asked: nothing is revealed"):
        f.server.request()


def test_one_that_comes_back_late_is_not_in_the_sum():
    f = Federation().share().mask("a", "b", "c")
    f.server.request()
    f.clients["d"], message = f.clients["d"].mask(f.server.mailbox(3), f.words["d"])
    with refuses("too late"):
        f.server.take_masked(3, message, f.words["d"])


def test_too_few_announcements_are_refused():
    with refuses("expected 3 to 4 clients with keys, got 2"):
        SecureServer(TERMS, [SecureClient(n, TERMS).announce() for n in "ab"])


def test_a_client_that_gives_false_shares_voids_the_round():
    f = Federation().share().mask("a", "b", "c")
    request = f.server.request()
    for i, n in enumerate("abc"):
        client = f.clients[n]
        if n == "b":
            client = replace(client, shares=dict.fromkeys(client.shares, bytes(32)))
        f.server.take_unmask(i, client.unmask(request))
    with refuses("shares of client `a`'s own mask do not fit"):
        f.server.unmasked()


def test_secrets_show_in_no_repr():
    f = Federation().share().mask()
    client = f.clients["a"]
    for seed in (client.mask_seed, client.self_seed, client.tag_secret):
        assert repr(seed) not in repr(client)
        assert seed.hex() not in repr(client)
