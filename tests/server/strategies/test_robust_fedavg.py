"""Robust rules in a federation: order-free, resumed, with the rule's own number of bad clients at work."""

import itertools

import numpy as np
import pytest
from flwr.serverapp.strategy import DifferentialPrivacyServerSideFixedClipping as ServerClipping
from hypothesis import given
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from lightning_fl_ext import (
    CentredClipping,
    CoordinateMedian,
    ExactFedAvg,
    GeometricMedian,
    KrumSelection,
    LightningFLError,
    LocalGrid,
    RobustFedAvg,
    RoundCallback,
    RoundCheckpoint,
    RoundLedger,
    TrimmedMean,
    digest,
    verify_ledger,
)
from lightning_fl_ext.engines import NotEnoughClientsError
from lightning_fl_ext.server import CheckpointError
from lightning_fl_ext.wire import to_numpy

RULES = {
    "median": CoordinateMedian(),
    "trimmed": TrimmedMean(0.2),
    "krum": KrumSelection(1),
    "multi-krum": KrumSelection(1, select=3),
    "geometric": GeometricMedian(),
    "clipping": CentredClipping(1.0),
}
rules = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)


def start(model):
    return {name: to_numpy(tensor) for name, tensor in model.state_dict().items()}


@rules
def test_a_round_is_the_rule_applied_to_the_updates(toy, rule):
    model = toy.Net(buffers=True)
    like = start(model)
    updates = [toy.local_fit(like, partition, 1) for partition in range(5)]
    result = toy.make_trainer(RobustFedAvg(rule), max_rounds=1).fit(model, toy.make_grid())
    assert result.digest == digest(rule(like, updates))
    assert {"train_loss", "val_loss"} <= result.metrics.keys()


@rules
def test_arrival_orders_and_nameless_clients_give_one_digest(toy, rule):
    digests = set()
    for order in list(itertools.permutations(range(5)))[::31]:
        for app in (toy.make_app(), toy.make_app(query=False, client_record=False)):
            grid = toy.make_grid(app=app, arrival=lambda messages, order=order: [messages[i] for i in order])
            strategy = RobustFedAvg(rule, fraction_evaluate=0.0, min_evaluate_nodes=0)
            digests.add(toy.make_trainer(strategy).fit(toy.Net(buffers=True), grid).digest)
    assert len(digests) == 1


@rules
def test_one_two_and_four_threads_give_one_digest(toy, rule):
    digests = set()
    for threads in (1, 2, 4):
        with threadpool_limits(threads):
            trainer = toy.make_trainer(RobustFedAvg(rule), max_rounds=1)
            digests.add(trainer.fit(toy.Net(size=60_000).double(), toy.make_grid()).digest)
    assert len(digests) == 1


class Stop(RoundCallback):
    """Stops a run after a round, as a kill would."""

    def __init__(self, after):
        self.after = after

    def on_round_end(self, trainer):
        trainer.should_stop = trainer.current_round == self.after


@rules
def test_a_stopped_run_goes_on_to_the_same_digest_with_a_whole_ledger(toy, rule, tmp_path):
    def fit(folder, *callbacks, **options):
        callbacks = [RoundCheckpoint(), RoundLedger(), *callbacks]
        trainer = toy.make_trainer(
            RobustFedAvg(rule), max_rounds=4, callbacks=callbacks, default_root_dir=tmp_path / folder
        )
        return trainer.fit(toy.Net(buffers=True), toy.make_grid(), **options)

    fit("stopped", Stop(2))
    assert fit("stopped", ckpt_path="last").digest == fit("whole").digest
    assert verify_ledger(tmp_path / "stopped").ok


def test_another_rule_does_not_go_on_from_a_checkpoint(toy, tmp_path):
    def fit(rule, **options):
        trainer = toy.make_trainer(
            RobustFedAvg(rule), callbacks=[RoundCheckpoint()], default_root_dir=tmp_path
        )
        return trainer.fit(toy.Net(), toy.make_grid(), **options)

    fit(TrimmedMean(0.2))
    with pytest.raises(CheckpointError, match=r"TrimmedMean\(fraction=0.2\).*TrimmedMean\(fraction=0.4\)"):
        fit(TrimmedMean(0.4), ckpt_path="last")


@rules
def test_a_bad_client_of_five_does_not_matter_and_in_the_mean_it_does(toy, rule):
    def times_a_million(instruction, reply):
        if toy.is_train(instruction) and toy.client_of(reply) == "03":
            return toy.replace_arrays(
                reply, lambda a: {k: np.asarray(v * 1e6, v.dtype) for k, v in a.items()}
            )
        return reply

    def norm(strategy, **options):
        result = toy.make_trainer(strategy, max_rounds=1).fit(toy.Net(), toy.make_grid(**options))
        assert result.rejected == []
        return np.linalg.norm(result.model.state_dict()["weight"])

    honest, mean = norm(ExactFedAvg()), norm(ExactFedAvg(), faults=times_a_million)
    assert norm(RobustFedAvg(rule), faults=times_a_million) < 3 * honest < 1000 * honest < mean


def test_screening_comes_first_and_says_whom_it_left_out(toy):
    def not_finite(instruction, reply):
        if toy.is_train(instruction) and toy.client_of(reply) == "02":
            return toy.replace_arrays(reply, lambda a: a | {"bias": a["bias"] * np.nan})
        return reply

    result = toy.make_trainer(RobustFedAvg(CoordinateMedian())).fit(
        toy.Net(), toy.make_grid(faults=not_finite)
    )
    assert {(r.client_id, r.reason) for r in result.rejected} == {("02", "not-finite")}
    assert all(record.accepted == ("00", "01", "03", "04") for record in result.rounds)


def test_magnitudes_whose_squares_overflow_are_left_out_by_name(toy):
    def huge(instruction, reply):
        if toy.is_train(instruction) and toy.client_of(reply) == "02":
            return toy.replace_arrays(reply, lambda a: a | {"bias": a["bias"] * 1e300})
        return reply

    model, grid = toy.Net().double(), toy.make_grid(faults=huge)
    result = toy.make_trainer(RobustFedAvg(GeometricMedian())).fit(model, grid)
    assert {(r.client_id, r.reason) for r in result.rejected} == {("02", "magnitude")}


def test_a_round_with_too_few_updates_for_the_rule_is_void_and_said(toy, caplog):
    def vanish(instruction, reply):
        gone = toy.is_train(instruction) and toy.client_of(reply) in ("01", "02", "04")
        return None if gone and trainer.current_round == 2 else reply

    trainer = toy.make_trainer(RobustFedAvg(TrimmedMean(0.2)), max_rounds=3)
    result = trainer.fit(toy.Net(), toy.make_grid(faults=vanish))
    first, second, third = result.rounds
    assert (first.void, second.void, third.void) == (False, True, False)
    assert first.digest == second.digest
    why = "2 of 5 updates count, but TrimmedMean(fraction=0.2) needs 3 of 5 clients asked"
    assert f"round 2 is void: {why}" in caplog.text  # by the strategy, as it says under Flower alone
    assert f"round 2 is void, the model stays: {why}" in caplog.text


def test_those_who_drop_out_make_no_fewer_of_the_bad(toy):
    def vanish(instruction, reply):
        return None if toy.is_train(instruction) and toy.client_of(reply) in ("07", "08", "09") else reply

    model, rule = toy.Net(), TrimmedMean(0.2)
    like = start(model)
    updates = [toy.local_fit(like, partition, 1) for partition in range(7)]
    result = toy.make_trainer(RobustFedAvg(rule), max_rounds=1).fit(model, toy.make_grid(10, faults=vanish))
    assert result.digest == digest(rule(like, updates, asked=10)) != digest(rule(like, updates))


def test_a_rule_that_too_few_clients_are_connected_for_is_refused_before_any_trains(toy):
    def refused(strategy, *says, clients=5):
        app = toy.make_app(fit=lambda *_: pytest.fail("a client trains"))
        with pytest.raises(NotEnoughClientsError) as caught:
            toy.make_trainer(strategy).fit(toy.Net(), toy.make_grid(clients, app))
        assert all(part in str(caught.value) for part in (f"{clients} client(s) are connected", *says))

    refused(
        RobustFedAvg(TrimmedMean(0.1)),
        "At least 10 are needed: TrimmedMean(fraction=0.1), which takes 10 asked to train. Connect more, or"
        " change the rule: TrimmedMean(fraction=0.1) trims nobody of 5 clients asked",
    )
    refused(
        RobustFedAvg(KrumSelection(2)),
        "At least 7 are needed: KrumSelection(malicious=2, select=1), which takes 7 asked to train.",
        "with 2 bad ones of fewer, they could be the majority",
    )
    refused(
        RobustFedAvg(TrimmedMean(0.3), fraction_train=0.3),
        "At least 14 are needed",
        "(`fraction_train=0.3` asks 4 of 14)",
        "have more of them asked (`min_train_nodes=4`)",
        clients=10,
    )


@given(st.floats(0.05, 1.0), st.integers(1, 5), st.integers(2, 4), st.integers(0, 60))
def test_as_many_clients_as_it_says_are_enough_and_one_fewer_is_not(fraction, malicious, asked, connected):
    strategy = RobustFedAvg(KrumSelection(malicious), fraction_train=fraction, min_train_nodes=asked)
    number = strategy.least_connected(connected)[0]
    enough = [max(int(n * fraction), asked) >= 2 * malicious + 3 for n in range(number + 1)]
    assert number >= connected
    assert enough[number]
    assert number == connected or not enough[number - 1]


def test_the_settings_it_names_as_a_remedy_are_one(toy):
    strategy = RobustFedAvg(TrimmedMean(0.3), fraction_train=0.3, min_train_nodes=4)
    assert not toy.make_trainer(strategy, max_rounds=1).fit(toy.Net(), toy.make_grid(10)).rounds[0].void


def test_an_evaluation_needs_no_more_clients_than_flower_does(toy):
    assert toy.make_trainer(RobustFedAvg(KrumSelection(2))).validate(toy.Net(), toy.make_grid())["val_loss"]


def test_clients_that_connect_later_are_waited_for(toy):
    class Growing(LocalGrid):
        in_process, asked = False, 0

        def get_node_ids(self):
            self.asked += 1
            return list(super().get_node_ids())[: self.asked]

    grid = toy.make_grid(7, grid_class=Growing)
    result = toy.make_trainer(RobustFedAvg(KrumSelection(2)), max_rounds=1).fit(toy.Net(), grid)
    assert len(result.rounds[0].accepted) == 7


class OwnChoice(RobustFedAvg):
    """Asks three of the clients in one round, whatever its settings say."""

    def configure_train(self, server_round, arrays, config, grid):
        self.fraction_train = 0.6 if server_round == self.few_in else 1.0
        return super().configure_train(server_round, arrays, config, grid)

    def least_connected(self, connected):
        return 0, "", ""


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: ServerClipping(s, 0.1, 0.5, 5)], ids=["", "DP"])
def test_a_later_round_that_asks_too_few_for_the_rule_is_void_and_says_why(toy, caplog, wrap):
    strategy = OwnChoice(KrumSelection(1))
    strategy.few_in = 2
    first, second, third = (
        toy.make_trainer(wrap(strategy), max_rounds=3).fit(toy.Net(), toy.make_grid()).rounds
    )
    assert (first.void, second.void, third.void) == (False, True, False)
    assert len(second.sampled) == 3
    assert first.digest == second.digest != third.digest
    assert (
        "round 2 is void, the model stays: 3 of 3 updates count, but KrumSelection(malicious=1, select=1)"
        " needs at least 5 clients" in caplog.text
    )


def test_a_first_round_that_asks_too_few_for_the_rule_is_refused_before_any_trains(toy):
    app = toy.make_app(fit=lambda *_: pytest.fail("a client trains"))
    strategy = OwnChoice(KrumSelection(1))
    strategy.few_in = 1
    with pytest.raises(LightningFLError, match=r"KrumSelection\(malicious=1, select=1\) needs at least 5"):
        toy.make_trainer(strategy).fit(toy.Net(), toy.make_grid(5, app))


def test_it_runs_inside_a_wrapper_that_clips_and_noises(toy):
    strategy = ServerClipping(RobustFedAvg(CoordinateMedian()), 0.1, 0.5, 5)
    result = toy.make_trainer(strategy).fit(toy.Net(buffers=True), toy.make_grid())
    assert not any(record.void for record in result.rounds)


@pytest.mark.parametrize("rule", [CoordinateMedian, "median", None])
def test_what_is_no_rule_is_refused(rule):
    with pytest.raises(TypeError, match="`rule` must be a robust rule"):
        RobustFedAvg(rule)
