"""What SecureFedAvg refuses, on either side, and what is altered on its way."""

import _toy as toy
import numpy as np
import pytest
from _secure import STEPS, Recording, make_app, step_of
from _secure_fit import fit, why
from flwr.app import ConfigRecord, MetricRecord, RecordDict
from flwr.serverapp.strategy import DifferentialPrivacyClientSideFixedClipping

from lightning_fl_ext import ExactFedAvg, FedPM, LightningFLError, RoundLedger, SecureFedAvg
from lightning_fl_ext.server import BadUpdateError, Reason
from lightning_fl_ext.wire import from_record, to_record


def test_a_client_without_its_half_is_left_out_by_name_and_sends_no_weights():
    whole, bare = make_app(), toy.make_app()
    recording = Recording()

    def app(message, context):
        return (bare if context.node_config["partition-id"] == 1 else whole)(message, context)

    result = fit(app=app, faults=recording, max_rounds=1)
    assert why(result) == [("01", Reason.SECURE)]
    assert "use `client_app` of this package, or" in str(result.rejected[0])
    assert not any("arrays" in reply.content for _, reply in recording.passed if reply.has_content())


def test_a_client_that_answers_with_weights_all_the_same_is_left_out():
    def faults(instruction, reply):
        if step_of(instruction) == "announce" and toy.client_of(reply) == "01":
            reply.content["arrays"] = to_record({"weight": np.zeros(2)})
        return reply

    result = fit(faults=faults, max_rounds=1)
    assert why(result) == [("01", Reason.SECURE)]


def test_a_client_that_insists_answers_a_plain_request_with_an_error_and_no_weights():
    recording = Recording()
    with pytest.raises(
        LightningFLError, match="only under secure aggregation, and was asked for it in the plain"
    ):
        fit(ExactFedAvg(), app=make_app(required=True), faults=recording)
    assert all(reply.has_error() for i, reply in recording.passed if toy.is_train(i))
    assert fit(app=make_app(required=True), max_rounds=1).rounds[0].accepted


@pytest.mark.parametrize(
    ("change", "reason", "key"),
    [
        (lambda a: {**a, "bias": a["bias"] * np.float32(np.nan)}, Reason.NOT_FINITE, "bias"),
        (lambda a: {**a, "bias": a["bias"] + np.float32(1e12)}, Reason.MAGNITUDE, "bias"),
        (lambda a: {**a, "bias": a["bias"] + np.float32(100)}, Reason.NORM, ""),
        (lambda a: {**a, "bias": a["bias"].astype(np.float64)}, Reason.DTYPE, "bias"),
        (lambda a: {**a, "bias": a["bias"][:1]}, Reason.SHAPE, "bias"),
        (lambda a: {"weight": a["weight"]}, Reason.KEYS, "bias"),
    ],
)
def test_an_update_that_the_server_would_refuse_is_refused_by_its_client(plain, change, reason, key):
    def local_fit(arrays, partition, server_round):
        fitted = toy.local_fit(arrays, partition, server_round)
        return change(fitted) if partition == 3 else fitted

    norm = 50.0 if reason is Reason.NORM else None
    result = fit(app=make_app(fit=local_fit), model=toy.Net(), max_update_norm=norm)
    assert [(r.client_id, r.reason, r.key) for r in result.rejected] == [("03", reason, key)] * 2
    assert result.digest == plain(without=["03"], model=toy.Net()).digest


def test_values_of_single_sites_are_refused_before_any_client_is_asked():
    recording = Recording()
    with pytest.raises(LightningFLError, match="`site_metrics` needs each site's own values"):
        fit(faults=recording, site_metrics={"train_loss": "min"})
    assert not recording.passed


def test_a_bad_update_stops_the_run_if_it_is_told_to():
    def local_fit(arrays, partition, server_round):
        return {k: a * np.float32("nan") for k, a in arrays.items()} if partition == 3 else dict(arrays)

    with pytest.raises(BadUpdateError, match=r"client `03`, round 1: not-finite, `weight`"):
        fit(app=make_app(fit=local_fit), model=toy.Net(), on_bad_update="raise")


def test_metrics_that_not_all_have_or_that_are_not_finite_are_not_in_the_sum():
    def metrics(partition, _):
        odd = {"only_one": 1.0} if partition == 0 else {}
        return {"loss": 0.5, "nan": np.nan if partition == 2 else 1.0, "many": [1.0, 2.0], **odd}

    measured = fit(app=make_app(metrics=metrics), max_rounds=1).rounds[0].metrics
    assert measured["loss"] == 0.5
    assert not {"only_one", "nan", "many"} & set(measured)


def test_what_is_named_like_the_servers_own_does_not_come_out_of_a_sum():
    measured = fit(app=make_app(metrics=lambda *_: {"server_loss": 1.0, "bytes_up": 1.0, "loss": 0.5}))
    assert measured.rounds[0].metrics["loss"] == 0.5
    assert "server_loss" not in measured.rounds[0].metrics
    assert measured.rounds[0].metrics["bytes_up"] > 1000


def test_clients_without_their_half_of_an_evaluation_are_named_and_the_model_stays():
    result = fit(SecureFedAvg(fraction_evaluate=1.0), max_rounds=1)
    assert why(result) == [(f"{i:02d}", Reason.SECURE) for i in range(5)]
    assert result.digest == fit(max_rounds=1).digest


@pytest.mark.parametrize("number", [1, 2])
def test_two_clients_are_too_few(number):
    with pytest.raises(LightningFLError, match="needs at least 3 clients"):
        fit(SecureFedAvg(min_available_nodes=1, min_train_nodes=1), number)


@pytest.mark.parametrize("threshold", [0.5, 0, 1.1, True, "most"])
def test_a_threshold_that_is_no_majority_is_refused(threshold):
    with pytest.raises(ValueError, match="`threshold` must be a fraction above one half"):
        SecureFedAvg(threshold=threshold)


def test_what_needs_single_updates_is_refused():
    with pytest.raises(ValueError, match="train_metrics_aggr_fn"):
        SecureFedAvg(train_metrics_aggr_fn=lambda *_: MetricRecord())
    with pytest.raises(LightningFLError, match="use it without a wrapper"):
        fit(DifferentialPrivacyClientSideFixedClipping(SecureFedAvg(), 0.1, 0.5, 5))
    with pytest.raises(LightningFLError, match="cannot keep what no one sees"):
        fit(callbacks=[RoundLedger(keep_updates=True)])
    assert not getattr(FedPM, "secure", False)


@pytest.mark.parametrize("step", STEPS[:3])
@pytest.mark.parametrize("what", ["altered", "replayed", "swapped"])
def test_what_is_altered_replayed_or_swapped_on_its_way_is_named(step, what):
    kept, order = {}, []

    def faults(instruction, reply):
        if step_of(instruction) != step or "client" not in reply.content:
            return reply
        client, server_round = toy.client_of(reply), reply.content["client"]["server-round"]
        kept[client, server_round] = RecordDict(reply.content)
        if server_round == 2:
            order.append(client)
        if len(order) != 2:
            return reply  # the second that answers in the second round is the victim
        source = {"replayed": (client, 1), "swapped": (order[0], 2), "altered": (client, 2)}[what]
        names = ("secure", "masked") if step == "mask" else ("secure",)
        for name in names:
            reply.content[name] = kept[source][name]
        if what == "altered":
            _alter(reply.content, step)
        return reply

    result = fit(faults=faults, min_accepted=1)
    assert {r.server_round for r in result.rejected} == {2}
    assert {r.client_id for r in result.rejected} == {order[1]}
    assert result.rounds[1].accepted == tuple(sorted(set(order) - {order[1]}))


def _alter(content, step):
    if step == "mask":
        words = from_record(content["masked"])["masked"].copy()
        words[3] ^= np.uint64(1)
        content["masked"] = to_record({"masked": words}, bare=["masked"])
    else:
        record = dict(content["secure"])
        name = "mask-key" if step == "announce" else "sealed"
        value = record[name]
        record[name] = b"\x07" + bytes(30) + b"\x01" if step == "announce" else bytes(1) + value[1:]
        content["secure"] = ConfigRecord(record)


def test_a_client_that_lies_about_its_metrics_voids_the_round_and_stops_nothing(monkeypatch):
    entry, counts = '["states", "train", "m", "settings", {"tp": ["int64", []]}]', iter([2**80])
    told = "lightning_fl_ext.client.secure.summable"
    monkeypatch.setattr(told, lambda *_: {entry: [1, next(counts, 3)]})
    result = fit(max_rounds=2, min_accepted=1)
    assert [record.void for record in result.rounds] == [True, False]
    assert "expected counts under 2^63" in str(result.rejected[0])
