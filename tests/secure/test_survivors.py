"""A server that tells clients different lists of survivors, and the signatures that keep it from that."""

import numpy as np
import pytest
from _round import name
from hypothesis import given
from hypothesis import strategies as st

from lightning_fl_ext.secure import (
    SecureAggregationError,
    SecureClient,
    SecureServer,
    Terms,
    masks,
    write_site_keys,
)
from lightning_fl_ext.secure.keys import SEED_BYTES, agree, derive, private_key
from lightning_fl_ext.secure.messages import parts
from lightning_fl_ext.secure.shares import combine
from lightning_fl_ext.secure.signatures import SiteKeys
from lightning_fl_ext.secure.survivors import SurvivorList


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """Of forty sites."""
    public, private = tmp_path_factory.mktemp("public"), tmp_path_factory.mktemp("private")
    for i in range(40):
        _, path = write_site_keys(private, name(i))
        path.rename(public / path.name)
    return {name(i): SiteKeys(public, private / f"{name(i)}.key") for i in range(40)}


class Masked:
    """Sites that have all masked their vectors."""

    def __init__(self, number, threshold, keys):
        self.keys, terms = keys, Terms(b"s" * 16, number, threshold)
        sites = [SecureClient(name(i), terms) for i in range(number)]
        self.server = SecureServer(terms, [s.announce(keys[s.client_id].sign) for s in sites])
        roster = self.server.roster
        for i, site in enumerate(sites):
            sites[i], message = site.share(roster, keys[name(i)].check)
            self.server.take_shares(i, message)
        self.sites, self.truth, self.seen = sites, [], []
        for i in range(number):
            self.truth.append(np.random.default_rng(i).integers(0, 2**63, 5).astype(np.uint64))
            words = self.truth[i].copy()
            sites[i], message = sites[i].mask(self.server.mailbox(i), words)
            self.server.take_masked(i, message, words)
            self.seen.append(words)

    def confirm(self, i, request):
        self.sites[i], message = self.sites[i].confirm(request, self.keys[name(i)].sign)
        return message

    def unmask(self, i, request):
        return self.sites[i].unmask(request, self.keys[name(i)].check_list)


def different_lists(roster, victim):
    """Lists above the threshold, of which each site is told its own, that open all masks of one site."""
    number, t = len(roster.members), roster.share_threshold
    told = {i: set() for i in range(number)}
    for j in roster.neighbours(victim):
        for _ in range(t):
            free = [h for h in roster.holders(j) if h != j and j not in told[h]]
            told[min(free, key=lambda h: len(told[h]))].add(j)
    assert max(map(len, told.values())) <= number - roster.terms.threshold
    everyone = set(range(number))
    return {i: {"survivors": sorted(everyone - gone), "dropped": sorted(gone)} for i, gone in told.items()}


def opened(roster, answers):
    """Shares of own masks and of keys, put together wherever enough came."""
    for names, values in (("survivors", "self-shares"), ("dropped", "key-shares")):
        found = {}
        for holder, message in answers.items():
            of = message[names]
            for j, share in zip(of, parts(message, values, SEED_BYTES, len(of)), strict=True):
                found.setdefault(j, {})[roster.holders(j).index(holder) + 1] = share
        t = roster.share_threshold
        yield {j: combine(shares, t) for j, shares in found.items() if len(shares) >= t}


def test_among_many_different_lists_open_a_single_vector_of_sites_that_check_no_signatures(keys):
    f, victim = Masked(40, 27, keys), 3
    roster = f.server.roster
    requests = different_lists(roster, victim)
    own, of_keys = opened(roster, {i: f.sites[i].unmask(requests[i]) for i in requests})
    vector = f.seen[victim].copy()
    plus, minus = [], [derive(own[victim], "self", roster.digest)]
    for j in roster.neighbours(victim):
        pair = agree(private_key(of_keys[j]), roster.members[victim].mask_key, "mask", roster.digest)
        (minus if victim < j else plus).append(pair)
    masks.mask(vector, plus, minus)
    assert (vector == f.truth[victim]).all()


def test_sites_that_check_signatures_give_nothing_to_a_server_that_tells_them_different_lists(keys):
    f = Masked(40, 27, keys)
    requests = different_lists(f.server.roster, 3)
    signatures = {i: f.confirm(i, request)["list-signature"] for i, request in requests.items()}
    signed = {"signers": list(signatures), "list-signatures": b"".join(signatures.values())}
    for i, request in requests.items():
        with pytest.raises(SecureAggregationError, match="others may have been told another list"):
            f.unmask(i, {**request, **signed})


@given(st.lists(st.integers(0, 1), min_size=5, max_size=5))
def test_of_two_lists_at_most_one_is_given_shares_for(keys, told):
    f = Masked(5, 3, keys)
    lists = [{"survivors": [0, 1, 2, 3, 4], "dropped": []}, {"survivors": [0, 1, 2, 3], "dropped": [4]}]
    told = [*told[:4], 0]  # the fifth is told that it survived
    signatures = [{}, {}]
    for i, which in enumerate(told):
        signatures[which][i] = f.confirm(i, lists[which])["list-signature"]
    given_for = set()
    for i in range(4):
        for which in (0, 1):
            of = signatures[which]
            request = {"signers": list(of), "list-signatures": b"".join(of.values()), **lists[which]}
            try:
                f.unmask(i, request)
            except SecureAggregationError:
                continue
            given_for.add(which)
    assert given_for == {which for which in (0, 1) if told.count(which) >= 3}


def test_a_site_signs_one_list_in_a_round(keys):
    f = Masked(5, 3, keys)
    f.confirm(0, {"survivors": [0, 1, 2, 3, 4], "dropped": []})
    with pytest.raises(SecureAggregationError, match="signed a list of survivors in this round already"):
        f.confirm(0, {"survivors": [0, 1, 2, 3], "dropped": [4]})


def test_a_site_signs_no_list_under_the_threshold(keys):
    f = Masked(5, 3, keys)
    with pytest.raises(SecureAggregationError, match="2 survivors are under the threshold of 3"):
        f.confirm(0, {"survivors": [0, 1], "dropped": [2, 3, 4]})


@pytest.mark.parametrize("what", ["missing", "altered", "of the round before", "swapped", "of one outside"])
def test_signatures_that_are_not_of_this_list_by_a_survivor_do_not_count(keys, what):
    before, f = Masked(5, 3, keys), Masked(5, 3, keys)
    request = {"survivors": [0, 1, 2, 3], "dropped": [4]}
    signatures = {i: f.confirm(i, request)["list-signature"] for i in range(3)}
    if what == "missing":
        f.unmask(0, {**request, **_signed(signatures)})  # three suffice
        del signatures[2]
    elif what == "altered":
        signatures[2] = bytes(64)
    elif what == "of the round before":
        signatures[2] = before.confirm(2, request)["list-signature"]
    elif what == "swapped":
        signatures[2] = signatures[1]
    else:
        text = SurvivorList([0, 1, 2, 3], [4]).signed_text(f.server.roster)
        signatures[4] = keys[name(4)].sign(text)  # as only one that colludes would
        del signatures[2]
    with pytest.raises(SecureAggregationError, match="2 of the sites that are trusted have signed"):
        f.unmask(0, {**request, **_signed(signatures)})


def test_a_request_without_signatures_gets_nothing_from_a_site_that_trusts_keys(keys):
    f = Masked(5, 3, keys)
    with pytest.raises(SecureAggregationError, match="0 of the sites that are trusted have signed"):
        f.unmask(0, f.server.request())


def test_the_server_refuses_a_signature_that_came_twice_altered_or_of_another(keys):
    f = Masked(5, 3, keys)
    request = f.server.request()
    zero, one = f.confirm(0, request), f.confirm(1, request)
    f.server.take_confirmation(0, zero)
    with pytest.raises(SecureAggregationError, match="answered twice"):
        f.server.take_confirmation(0, zero)
    for wrong in ({**one, "list-signature": bytes(64)}, zero):
        with pytest.raises(SecureAggregationError, match="altered, or of another client or round"):
            f.server.take_confirmation(1, wrong)
    with pytest.raises(SecureAggregationError, match="1 signatures of the list of survivors, and the thresh"):
        f.server.signed_request()


def _signed(signatures):
    return {"signers": list(signatures), "list-signatures": b"".join(signatures.values())}
