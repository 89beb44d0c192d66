"""What goes down to clients that hold the last θ, to those that do not, and to those that have lost it."""

import itertools

import numpy as np
import pytest
from _masked_fits import down_bytes
from flwr.clientapp import ClientApp
from torch import nn

from lightning_fl_ext import (
    FederatedTrainer,
    FedPM,
    LightningFLError,
    LocalGrid,
    MaskedModule,
    MaskExchange,
    RoundCallback,
    RoundCheckpoint,
)
from lightning_fl_ext.aggregation.mask_posterior import ThetaCounts
from lightning_fl_ext.client.bridge.held import read_held, write_held
from lightning_fl_ext.client.messages import outcome_reply, query_reply, read_instruction
from lightning_fl_ext.results import ClientUpdate
from lightning_fl_ext.wire import Held, NotHeldError, RoundInfo
from lightning_fl_ext.wire.masks.names import COUNTS, MASKS, TRIALS

CLIENTS = 5
ALL = "01234"
KINDS = {16: "alone", 17: "sum", 18: "relay", 19: "same", 20: "counts"}


class Net(nn.Module):
    def __init__(self, seed=1):
        super().__init__()
        self.net = MaskedModule(nn.Linear(60, 50), seed=seed)


class Sent:
    """What each client got: its kind by (phase, round, client), all tries in order, and the θ it read."""

    def __init__(self):
        self.kinds, self.thetas = {}, {}

    def note(self, message, info, received=None):
        phase = message.metadata.message_type.split(".")[0]
        place = phase, info.server_round, info.client_id
        if received is None:
            data = next(iter(message.content.array_records.values()))[MASKS].data
            self.kinds.setdefault(place, []).append(KINDS[data[3]])
        else:
            self.thetas[place] = np.array(received[COUNTS]), int(received[TRIALS])

    def of(self, server_round, phase="train"):
        return {
            client: kinds for (p, r, client), kinds in self.kinds.items() if (p, r) == (phase, server_round)
        }


def each(clients, *kinds):
    return {client: list(kinds) for client in clients}


def lean_app(exchange, sent, forgets=lambda client, server_round: False, seed=1):
    """Clients without a Trainer, by formula, which keep θ as a `FlowerBridge` does."""
    app = ClientApp()
    state = Net(seed).state_dict()

    @app.query()
    def query(message, context):
        return query_reply(message, str(context.node_config["partition-id"]))

    @app.train()
    def train(message, context):
        return answer(message, context)

    @app.evaluate()
    def evaluate(message, context):
        return answer(message, context)

    def answer(message, context):
        client = str(context.node_config["partition-id"])
        trains = message.metadata.message_type == "train"
        server_round = int(message.content["config"]["server-round"])
        if trains and forgets(client, server_round):
            context.state.clear()
        received, _, info, _ = read_instruction(message, client, exchange, read_held(context))
        sent.note(message, info)
        exchange.unpack(received, state)
        sent.note(message, info, received)
        arrays = {}
        if trains:
            theta = ThetaCounts(np.asarray(received[COUNTS]), int(received[TRIALS])).probabilities()
            moved = theta + np.random.default_rng((int(client), server_round)).normal(0, 0.05, theta.size)
            probs = np.clip(moved, 0.02, 0.98).astype(np.float32)
            arrays = exchange.to_server({MASKS: probs}, received, info)
        update = ClientUpdate(arrays, 10, client_id=client, server_round=server_round, metrics={"loss": 1.0})
        write_held(context, exchange.keepsake(received))
        return outcome_reply(message, update, {}, exchange.coded)

    return app


class Thetas(RoundCallback):
    """The server's θ at the start of each round, and at the end of the last."""

    def __init__(self):
        self.at = {}

    def on_round_start(self, trainer):
        self.at[trainer.current_round] = np.array(trainer.arrays[COUNTS]), int(trainer.arrays[TRIALS])

    def on_round_end(self, trainer):
        self.at[trainer.current_round + 1] = np.array(trainer.arrays[COUNTS]), int(trainer.arrays[TRIALS])


@pytest.fixture
def federate(tmp_path):
    folders = itertools.count()

    def run(
        down="sum",
        rounds=4,
        code="dithered",
        stratified=False,
        evaluate=0.0,
        folder=None,
        callbacks=(),
        ckpt_path=None,
        forgets=lambda client, server_round: False,
        client_down=None,
        client_seed=1,
        min_accepted=1,
        faults=None,
        **strategy,
    ):
        exchange = MaskExchange(code, stratified, down=down)
        theirs = MaskExchange(code, stratified, down=client_down or down)
        trainer = FederatedTrainer(
            max_rounds=rounds,
            strategy=FedPM(fraction_evaluate=evaluate, **strategy),
            seed=7,
            exchange=exchange,
            callbacks=[thetas := Thetas(), *callbacks],
            default_root_dir=folder or tmp_path / str(next(folders)),
            enable_progress_bar=False,
            min_accepted=min_accepted,
        )
        trainer.sent, trainer.thetas = Sent(), thetas.at
        grid = LocalGrid(lean_app(theirs, trainer.sent, forgets, client_seed), CLIENTS, faults=faults)
        trainer.fit(Net, grid, ckpt_path=ckpt_path)
        return trainer

    return run


def check_thetas(trainer):
    """Every client read the server's θ, to the bit, whatever it was sent."""
    assert trainer.sent.thetas
    for (phase, server_round, _), (counts, trials) in trainer.sent.thetas.items():
        expected, of = trainer.thetas[server_round + (phase == "evaluate")]
        np.testing.assert_array_equal(counts, expected)
        assert trials == of


@pytest.mark.parametrize(
    ("code", "stratified", "down", "kind"),
    [
        ("dithered", False, "sum", "sum"),
        ("packed", False, "sum", "sum"),
        ("dithered", True, "sum", "sum"),
        ("random", False, "relay", "relay"),
        ("random", False, "sum", "counts"),
        ("dithered", False, "alone", "alone"),
    ],
)
def test_the_way_down_costs_bytes_and_changes_nothing_else(federate, code, stratified, down, kind):
    trainer = federate(down, code=code, stratified=stratified)
    assert trainer.sent.of(1) == each(ALL, "alone" if down == "alone" else "same")
    for server_round in (2, 3, 4):
        assert trainer.sent.of(server_round) == each(ALL, kind)
    check_thetas(trainer)
    alone = federate("alone", code=code, stratified=stratified)
    assert trainer.result.digest == alone.result.digest
    if down != "alone":
        assert sum(down_bytes(trainer)) < (0.7 if kind == "counts" else 0.5) * sum(down_bytes(alone))


@pytest.mark.parametrize("strategy", [{"prior": 3}, {"reset_every": 3}, {"prior": 2, "reset_every": 2}])
def test_counts_with_a_prior_or_over_several_rounds_come_down_as_sums_too(federate, strategy):
    trainer = federate(rounds=5, **strategy)
    kinds = {kind for (kind,) in trainer.sent.kinds.values()}
    assert kinds == {"same", "sum"}
    check_thetas(trainer)
    assert trainer.result.digest == federate("alone", rounds=5, **strategy).result.digest


def test_who_took_part_last_round_gets_the_sum_and_who_missed_one_the_whole(federate):
    """Of five clients three train a round; who was never asked still holds what its module starts from."""
    trainer = federate(rounds=8, fraction_train=0.6)
    seen = {}
    for server_round in range(1, 9):
        for client, kinds in trainer.sent.of(server_round).items():
            gap = server_round - seen.get(client, 1)
            expected = {0: "same", 1: "sum"}.get(gap, "alone")
            assert kinds == [expected], (server_round, client)
        seen |= dict.fromkeys(trainer.rounds[server_round - 1].accepted, server_round)
    assert {kind for (kind,) in trainer.sent.kinds.values()} == {"same", "sum", "alone"}
    check_thetas(trainer)
    assert trainer.result.digest == federate("alone", rounds=8, fraction_train=0.6).result.digest


def test_a_client_that_has_lost_theta_is_asked_again_in_the_same_round(federate):
    trainer = federate(forgets=lambda client, server_round: (client, server_round) in (("1", 3), ("4", 3)))
    assert trainer.sent.of(3) == {
        **each("023", "sum"),
        **each("14", "sum", "alone"),
    }
    assert trainer.sent.of(4) == each(ALL, "sum")
    assert [record.accepted for record in trainer.rounds] == [tuple("01234")] * 4
    assert not any(record.rejected for record in trainer.rounds)
    check_thetas(trainer)
    undisturbed = federate()
    assert trainer.result.digest == undisturbed.result.digest
    first, second = down_bytes(undisturbed), down_bytes(trainer)
    assert [b > a for a, b in zip(first, second, strict=True)] == [False, False, True, False]


def test_a_client_that_says_so_of_the_whole_as_well_is_left_out_by_name(federate):
    asked = []

    def lies(client, server_round):
        if client == "2":
            asked.append(server_round)
            raise NotHeldError(f"a θ {NotHeldError.words}")
        return False

    trainer = federate(rounds=3, forgets=lies)
    assert asked == [1, 1, 2, 3]
    for record in trainer.rounds:
        assert record.accepted == tuple("0134")
        assert [(r.client_id, r.reason.value) for r in record.rejected] == [("2", "client-error")]
    check_thetas(trainer)


def test_a_client_that_never_keeps_theta_is_soon_sent_the_whole(federate):
    trainer = federate(client_down="alone", rounds=5)
    assert trainer.sent.of(1) == each(ALL, "same"), "which its module tells"
    assert trainer.sent.of(2) == each(ALL, "sum"), "on what its module tells"
    for server_round in (3, 4):
        assert trainer.sent.of(server_round) == each(ALL, "sum", "alone")
    assert trainer.sent.of(5) == each(ALL, "alone")
    assert trainer.result.digest == federate("alone", rounds=5).result.digest


def test_a_client_whose_module_starts_from_other_scores_is_sent_the_first_theta(federate, monkeypatch):
    def other_scores(self, state):
        started = start(self, state)
        return {**started, COUNTS: started[COUNTS][::-1].copy()}

    trainer = federate(rounds=2)
    start, unpack = MaskExchange.start, MaskExchange.unpack

    def other(self, arrays, state):
        with monkeypatch.context() as patch:
            patch.setattr(MaskExchange, "start", other_scores)
            return unpack(self, arrays, state)

    monkeypatch.setattr(MaskExchange, "unpack", other)
    elsewhere = federate(rounds=2)
    assert elsewhere.sent.of(1) == each(ALL, "same", "alone")
    assert elsewhere.sent.of(2) == each(ALL, "sum")
    assert elsewhere.result.digest == trainer.result.digest


def test_a_client_that_has_evaluated_theta_trains_from_it_without_being_sent_it_again(federate):
    trainer = federate(evaluate=1.0)
    assert trainer.sent.of(2, "evaluate") == each(ALL, "sum")
    assert trainer.sent.of(3) == each(ALL, "same")
    check_thetas(trainer)
    assert trainer.result.digest == federate("alone", evaluate=1.0).result.digest


def test_after_a_void_round_clients_hold_what_they_held(federate):
    def lose(_, reply):
        if reply.has_error():
            return reply
        client = reply.content["client"]
        return None if (client.get("client-id"), client.get("server-round")) == ("3", 2) else reply

    trainer = federate(faults=lose, min_accepted=CLIENTS)
    assert [record.void for record in trainer.rounds] == [False, True, False, False]
    assert trainer.sent.of(3) == {**each("0124", "same"), "3": ["alone"]}
    assert trainer.sent.of(4) == each(ALL, "sum")
    check_thetas(trainer)


def test_a_server_that_goes_on_from_a_checkpoint_gives_the_same_model(federate, tmp_path):
    folder = tmp_path / "run"
    federate(rounds=2, folder=folder, callbacks=[RoundCheckpoint()])
    resumed = federate(rounds=4, folder=folder, callbacks=[RoundCheckpoint()], ckpt_path="last")
    assert resumed.sent.of(3) == each(ALL, "alone")
    assert resumed.sent.of(4) == each(ALL, "sum")
    assert resumed.result.digest == federate(rounds=4).result.digest


def test_a_run_goes_on_with_another_way_down(federate, tmp_path):
    folder = tmp_path / "run"
    federate("alone", rounds=2, folder=folder, callbacks=[RoundCheckpoint()])
    resumed = federate("sum", rounds=4, folder=folder, callbacks=[RoundCheckpoint()], ckpt_path="last")
    assert resumed.result.digest == federate(rounds=4).result.digest


@pytest.mark.parametrize("which", [COUNTS, TRIALS])
def test_a_theta_that_was_altered_where_it_was_kept_is_never_trained_from(federate, monkeypatch, which):
    kept = MaskExchange.keepsake

    def altered(self, arrays):
        keepsake = {name: np.array(array) for name, array in kept(self, arrays).items()}
        if isinstance(arrays, dict):  # on the server
            return keepsake
        if which == TRIALS:
            keepsake[TRIALS] += 1
        else:
            keepsake[COUNTS][7] ^= 1
        return keepsake

    expected = federate("alone", rounds=3).result.digest
    monkeypatch.setattr(MaskExchange, "keepsake", altered)
    trainer = federate(rounds=3)
    assert trainer.sent.of(3) == each(ALL, "sum", "alone")
    assert trainer.result.digest == expected
    check_thetas(trainer)


def test_a_server_by_hand_that_sends_a_change_to_whoever_lacks_the_base_gets_an_error_that_says_so():
    exchange = MaskExchange()
    info = RoundInfo(7, 2)
    present = exchange.start(Net().state_dict())
    moved = {**present, COUNTS: np.roll(present[COUNTS], 1)}
    wire = exchange.to_holder(moved, info, Held(exchange.keepsake(moved)))
    received = exchange.from_server(wire, info)
    with pytest.raises(NotHeldError, match=r"round 2: the server sent a change.*missed a round") as error:
        exchange.unpack(received, Net().state_dict())
    assert isinstance(error.value, LightningFLError)


def test_an_unknown_way_down_is_refused():
    with pytest.raises(ValueError, match=r"`down` must be one of alone, sum, relay\. Got 'zip'"):
        MaskExchange(down="zip")
