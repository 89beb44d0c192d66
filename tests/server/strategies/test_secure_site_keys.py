"""SecureFedAvg among sites that exchanged long-lived keys: who is believed, and lists that they sign."""

import _toy as toy
import pytest
from _secure import Recording, lose, make_app, step_of
from _secure_fit import fit
from flwr.app import ConfigRecord

from lightning_fl_ext import LightningFLError, SecureAggregation, write_site_keys


@pytest.fixture(scope="module")
def site_keys(tmp_path_factory):
    public, private = tmp_path_factory.mktemp("public"), tmp_path_factory.mktemp("private")
    for i in range(5):
        _, path = write_site_keys(private, f"{i:02d}")
        path.rename(public / path.name)
    return public, private


def half_of(public, private):
    """Each site's half, with its own key."""

    def half(context):
        name = f"{context.node_config['partition-id']:02d}.key"
        return SecureAggregation(trusted_keys=public, signing_key=private / name)

    return half


def test_sites_that_exchanged_keys_beforehand_believe_no_others(site_keys, tmp_path):
    public, private = site_keys
    write_site_keys(tmp_path, "02")

    def half(stranger):
        def of(context):
            name = f"{context.node_config['partition-id']:02d}.key"
            folder = tmp_path if stranger and name == "02.key" else private
            return SecureAggregation(trusted_keys=public, signing_key=folder / name)

        return of

    assert fit(app=make_app(half=half(False)), max_rounds=1).rounds[0].accepted
    with pytest.raises(LightningFLError):
        fit(app=make_app(half=half(True)), max_rounds=1)


@pytest.mark.parametrize("step", [None, "mask", "confirm", "unmask"])
def test_sites_that_exchanged_keys_give_the_digest_of_exact_fedavg_whoever_drops_out(site_keys, plain, step):
    half = half_of(*site_keys)
    recording = Recording(lose("02", step) if step else None)
    secure = fit(app=make_app(half=half), faults=recording)
    assert secure.digest == plain(without=["02"] if step == "mask" else ()).digest
    signers = [i for i in range(5) if not (i == 2 and step in ("mask", "confirm"))]
    assert len(recording.of("confirm")) == 2 * len(signers)
    for instruction, _ in recording.passed:
        if step_of(instruction) == "unmask":
            assert len(instruction.content["secure"]["signers"]) == len(signers)


def test_a_round_of_which_too_few_sign_the_list_is_void_and_asks_for_no_shares(site_keys):
    half = half_of(*site_keys)

    def faults(instruction, reply):
        lost = step_of(instruction) == "confirm" and toy.client_of(reply) in ("01", "02")
        return None if lost and reply.content["client"]["server-round"] == 1 else reply

    recording = Recording(faults)
    result = fit(app=make_app(half=half), faults=recording, min_accepted=1)
    assert [record.void for record in result.rounds] == [True, False]
    assert "3 signatures of the list of survivors" in str(result.rejected[0])
    assert len(recording.of("unmask")) == 5  # of the second round alone


def test_sites_that_exchanged_keys_give_no_shares_for_a_list_that_is_not_signed(site_keys):
    honest = half_of(*site_keys)

    def half(context):
        def told_otherwise(message, context, train):  # by a server that leaves the signatures out
            if step_of(message) == "unmask":
                del message.content["secure"]["signers"]
            return honest(context)(message, context, train)

        return told_otherwise

    recording = Recording()
    with pytest.raises(LightningFLError, match="none of the 1 round"):
        fit(app=make_app(half=half), faults=recording, max_rounds=1)
    answers = [reply.content["secure"] for reply in recording.of("unmask")]
    assert len(answers) == 5
    assert all("0 of the sites that are trusted have signed" in answer["got"] for answer in answers)
    assert not any("self-shares" in answer for answer in answers)


def test_a_server_that_gives_keys_of_its_own_is_found_out_and_the_client_is_named(site_keys):
    half = half_of(*site_keys)

    def faults(instruction, reply):  # a server that announces keys of its own in the name of client 02
        if step_of(instruction) == "announce" and toy.client_of(reply) == "02":
            reply.content["secure"] = ConfigRecord(
                {**reply.content["secure"], "mask-key": bytes(31) + b"\x42"}
            )
        return reply

    with pytest.raises(LightningFLError):
        fit(app=make_app(half=half), faults=faults, max_rounds=1)
    recording = Recording(faults)
    with pytest.raises(LightningFLError):
        fit(app=make_app(half=half), faults=recording, max_rounds=1)
    refusals = [str(reply.content["secure"]["got"]) for reply in recording.of("share")]
    assert sum("keys of client `02` are not signed by its trusted key" in r for r in refusals) == 4
    assert recording.of("mask") == []
