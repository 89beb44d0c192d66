"""FedPM through real messages: the Beta posterior of the masks that clients sent, and of no others."""

import itertools
import random
import warnings

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import nn

from lightning_fl_ext import (
    ExactFedAvg,
    FederatedTrainer,
    FedPM,
    LightningFLError,
    LocalGrid,
    MaskedModule,
    MaskExchange,
    RoundCheckpoint,
    client_app,
)
from lightning_fl_ext.aggregation.mask_posterior import ThetaCounts
from lightning_fl_ext.client.messages import query_reply
from lightning_fl_ext.wire import RoundInfo, WeightExchange, from_record, to_record
from lightning_fl_ext.wire.codes import MaskKey, sample_mask, to_fixed_point
from lightning_fl_ext.wire.masks.names import COUNTS, MASKS, MODEL, TRIALS

CLIENTS, SEED = 5, 7


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = MaskedModule(nn.Linear(30, 20), seed=1)


def drift(partition, server_round, size):
    return np.random.default_rng((partition, server_round)).normal(0, 0.15, size)


def local_probs(received, partition, server_round):
    """What client `partition` makes of the θ it received."""
    theta = ThetaCounts(np.asarray(received[COUNTS]), int(received[TRIALS])).probabilities()
    return np.clip(theta + drift(partition, server_round, theta.size), 0.02, 0.98).astype(np.float32)


def lean_app(exchange, fit=local_probs):
    """A ClientApp without a Trainer, on the client's half of the exchange."""
    app = ClientApp()

    def name(context):
        return str(context.node_config["partition-id"])

    @app.query()
    def query(message, context):
        return query_reply(message, name(context))

    @app.train()
    def train(message, context):
        config = message.content["config"]
        info = RoundInfo(
            config["run-seed"], config["server-round"], name(context), tuple(config.get("sampled", ()))
        )
        received = exchange.from_server(from_record(message.content["arrays"]), info)
        probs = fit(received, int(name(context)), info.server_round)
        content = RecordDict(
            {
                "arrays": to_record(exchange.to_server({MASKS: probs}, received, info)),
                "metrics": MetricRecord({"num-examples": 10}),
                "client": ConfigRecord({"client-id": info.client_id, "server-round": info.server_round}),
            }
        )
        return Message(content, reply_to=message)

    return app


@pytest.fixture
def federate(tmp_path):
    folders = itertools.count()

    def run(
        *,
        exchange=None,
        strategy=None,
        rounds=2,
        app=None,
        clients=CLIENTS,
        folder=None,
        ckpt_path=None,
        model=Net,
        callbacks=(),
        min_accepted=1,
        **grid,
    ):
        exchange = exchange or MaskExchange(down="alone")
        trainer = FederatedTrainer(
            max_rounds=rounds,
            min_accepted=min_accepted,
            strategy=strategy or FedPM(fraction_evaluate=0.0),
            seed=SEED,
            exchange=exchange,
            callbacks=list(callbacks),
            default_root_dir=folder or tmp_path / str(next(folders)),
            enable_progress_bar=False,
        )
        trainer.fit(model, LocalGrid(app or lean_app(exchange), clients, **grid), ckpt_path=ckpt_path)
        return trainer

    return run


def masks_of(theta, partitions, server_round):
    """The masks that clients draw, by the reference: θ moved, then sampled from the client's own stream."""
    return [
        sample_mask(
            to_fixed_point(local_probs(theta, partition, server_round)),
            MaskKey(SEED, server_round, np.asarray(theta[MODEL]).tobytes().hex(), str(partition)),
        )
        for partition in partitions
    ]


def test_theta_is_the_share_of_open_masks_since_the_last_reset(federate):
    theta = MaskExchange().start(Net().state_dict())
    one = masks_of(theta, range(CLIENTS), 1)
    after_one = federate(rounds=1).arrays
    np.testing.assert_array_equal(after_one[COUNTS], np.sum(one, axis=0))
    assert int(after_one[TRIALS]) == CLIENTS
    two = masks_of(after_one, range(CLIENTS), 2)
    np.testing.assert_array_equal(federate(rounds=2).arrays[COUNTS], np.sum(two, axis=0))


def test_a_prior_and_rounds_without_reset_enter_the_posterior(federate):
    strategy = FedPM(prior=3, reset_every=2, fraction_evaluate=0.0)
    first = federate(rounds=1, strategy=strategy).arrays
    start = MaskExchange().start(Net().state_dict())
    one = np.sum(masks_of(start, range(CLIENTS), 1), axis=0)
    np.testing.assert_array_equal(first[COUNTS], one + 2)
    two = np.sum(masks_of(first, range(CLIENTS), 2), axis=0)
    second = federate(rounds=2, strategy=strategy).arrays
    np.testing.assert_array_equal(second[COUNTS], one + two + 2)
    assert int(second[TRIALS]) == 2 * CLIENTS + 4


def test_the_masks_of_a_void_round_are_not_counted(federate):
    def lose(_, reply):
        client = reply.content.get("client", {})
        return None if (client.get("client-id"), client.get("server-round")) == ("3", 2) else reply

    strategy = FedPM(reset_every=3, fraction_evaluate=0.0)
    trainer = federate(strategy=strategy, rounds=3, faults=lose, min_accepted=CLIENTS)
    assert [record.void for record in trainer.rounds] == [False, True, False]
    first = federate(rounds=1).arrays
    third = np.sum(masks_of(first, range(CLIENTS), 3), axis=0)
    np.testing.assert_array_equal(trainer.arrays[COUNTS], first[COUNTS] + third)
    assert int(trainer.arrays[TRIALS]) == 2 * CLIENTS


@pytest.mark.parametrize("options", [{"prior": 1.5}, {"prior": 0}, {"reset_every": 2.5}, {"reset_every": 0}])
def test_settings_that_are_not_positive_integers_are_refused(options):
    with pytest.raises(ValueError, match=f"`{next(iter(options))}` must be"):
        FedPM(**options)


def test_dithered_and_packed_masks_are_the_same_and_dithered_is_smaller(federate):
    dithered, packed = (federate(exchange=MaskExchange(code)) for code in ("dithered", "packed"))
    assert dithered.result.digest == packed.result.digest
    assert dithered.result.metrics["bytes_up"] < packed.result.metrics["bytes_up"]


@pytest.mark.parametrize("forgot", ["client", "server"])
def test_a_side_that_forgot_its_exchange_is_told_so(federate, forgot):
    exchange = MaskExchange()
    app = client_app(
        Lit, share, trainer={"accelerator": "cpu"}, exchange=None if forgot == "client" else exchange
    )
    sides = {
        "client": {"exchange": exchange},
        "server": {"exchange": WeightExchange(), "strategy": ExactFedAvg()},
    }
    with pytest.raises(LightningFLError, match=r"exchange=MaskExchange"):
        federate(app=app, model=Lit, **sides[forgot])


def test_bytes_are_those_of_the_arrays_in_the_messages(federate):
    seen = []

    def count(_, reply):
        if "arrays" in reply.content:
            seen.append(sum(len(a.data) for a in reply.content["arrays"].values()))
        return reply

    trainer = federate(rounds=1, faults=count)
    assert trainer.result.metrics["bytes_up"] == sum(seen) > 0


def test_every_order_of_arrival_gives_one_digest(federate):
    orders = itertools.permutations(range(4))
    digests = {
        federate(
            clients=4, rounds=1, arrival=lambda messages, o=order: [messages[i] for i in o]
        ).result.digest
        for order in orders
    }
    assert len(digests) == 1


def test_a_client_whose_weights_beside_the_masks_would_overflow_their_mean_is_left_out(federate):
    def explode(_, reply):
        if reply.has_content() and "arrays" in reply.content and reply.content["client"]["client-id"] == "1":
            arrays = dict(from_record(reply.content["arrays"]))
            arrays["net.module.3.bias"] = np.array([1e30, 0.0], dtype=np.float32)
            reply.content["arrays"] = to_record(arrays)
        return reply

    exchange = MaskExchange()
    app = client_app(Lit, share, trainer={"accelerator": "cpu"}, exchange=exchange)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = federate(exchange=exchange, app=app, model=Lit, clients=3, rounds=1, faults=explode)
    (rejection,) = trainer.result.rejected
    assert (rejection.client_id, rejection.reason, rejection.key) == ("1", "magnitude", "net.module.3.bias")
    assert trainer.rounds[-1].accepted == ("0", "2")


@pytest.mark.parametrize("exchange", [MaskExchange("random"), MaskExchange(stratified=True)], ids=repr)
def test_other_codes_run_in_any_order_too(federate, exchange):
    def shuffle(messages):
        return random.Random(3).sample(messages, len(messages))

    assert (
        federate(exchange=exchange).result.digest
        == federate(exchange=exchange, arrival=shuffle).result.digest
    )


def test_partial_participation_needs_no_earlier_round(federate):
    strategy = FedPM(fraction_train=0.4, reset_every=3, fraction_evaluate=0.0)
    trainer = federate(strategy=strategy, rounds=6)
    sampled = [record.sampled for record in trainer.rounds]
    assert all(
        len(s) == 2 and record.accepted == s for s, record in zip(sampled, trainer.rounds, strict=True)
    )
    assert len(set(sampled)) > 1


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-3], lambda b: b + b"x", lambda b: b[:-1] + bytes([b[-1] ^ 1])]
)
def test_a_damaged_mask_is_left_out_and_the_others_theta_stays(federate, damage):
    def hurt(_, reply):
        if reply.has_content() and "arrays" in reply.content and reply.content["client"]["client-id"] == "2":
            payload = from_record(reply.content["arrays"])[MASKS].tobytes()
            damaged = np.frombuffer(damage(payload), dtype=np.uint8)
            reply.content["arrays"] = to_record({MASKS: damaged})
        return reply

    trainer = federate(rounds=1, faults=hurt)
    (rejection,) = trainer.result.rejected
    assert (rejection.client_id, rejection.reason) == ("2", "undecodable")
    start = MaskExchange().start(Net().state_dict())
    np.testing.assert_array_equal(trainer.arrays[COUNTS], np.sum(masks_of(start, [0, 1, 3, 4], 1), axis=0))


def test_a_mask_kept_from_the_round_before_is_left_out(federate):
    kept = {}

    def replay(_, reply):
        if reply.has_content() and "arrays" in reply.content and reply.content["client"]["client-id"] == "1":
            old = kept.setdefault("old", reply.content["arrays"])
            reply.content["arrays"] = ArrayRecord(dict(old))
        return reply

    trainer = federate(rounds=2, faults=replay)
    (rejection,) = trainer.result.rejected
    assert (rejection.server_round, rejection.reason) == (2, "undecodable")
    assert "round" in rejection.got


def test_a_resumed_run_ends_in_the_same_bytes(federate, tmp_path):
    def strategy():
        return FedPM(reset_every=3, fraction_evaluate=0.0)

    whole = federate(strategy=strategy(), rounds=5).result.digest
    folder = tmp_path / "resumed"
    federate(strategy=strategy(), rounds=2, folder=folder, callbacks=[RoundCheckpoint()])
    again = federate(
        strategy=strategy(), rounds=5, folder=folder, callbacks=[RoundCheckpoint()], ckpt_path="last"
    )
    assert again.result.digest == whole


def test_scores_stay_finite_when_clients_agree_for_many_rounds(federate):
    exchange = MaskExchange()

    def insist(received, partition, server_round):
        return np.full(received[COUNTS].size, 0.999, dtype=np.float32)

    trainer = federate(rounds=4, exchange=exchange, app=lean_app(exchange, insist))
    assert all(torch.isfinite(p).all() for p in trainer.result.model.parameters())
    assert trainer.result.model.net.expected_open() > 0.98 * trainer.arrays[COUNTS].size


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strategy": ExactFedAvg()}, "FedPM"),
        ({"exchange": None, "model": nn.Linear(2, 2)}, "MaskedModule"),
    ],
)
def test_masks_without_their_counterpart_are_refused(federate, options, message):
    with pytest.raises((LightningFLError, ValueError), match=message):
        federate(**options)


def test_fedpm_without_masks_says_what_is_missing(tmp_path):
    trainer = FederatedTrainer(strategy=FedPM(), default_root_dir=tmp_path, enable_progress_bar=False)
    with pytest.raises(LightningFLError, match=r"exchange=MaskExchange"):
        trainer.fit(nn.Linear(2, 2), LocalGrid(lean_app(MaskExchange()), 2))


class Lit(pl.LightningModule):
    """A masked net with a BatchNorm whose statistics travel, and a head that is trained as weights."""

    def __init__(self):
        super().__init__()
        layers = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 2))
        self.net = MaskedModule(layers, seed=2, exclude=("1.*", "3.*"))

    def training_step(self, batch, _):
        x, y = batch
        return nn.functional.cross_entropy(self.net(x), y)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.05)


def share(context):
    generator = torch.Generator().manual_seed(int(context.node_config["partition-id"]))
    x = torch.randn(24, 4, generator=generator)
    return torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(x, (x[:, 0] > 0).long()), batch_size=8, shuffle=True
    )


def test_a_lightning_module_trains_masks_and_weights_with_no_other_change(federate):
    exchange = MaskExchange()
    app = client_app(Lit, share, trainer={"max_epochs": 2, "accelerator": "cpu"}, exchange=exchange)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = federate(exchange=exchange, app=app, model=Lit, clients=3)
        shuffled = federate(exchange=exchange, app=app, model=Lit, clients=3, arrival=lambda m: m[::-1])
    assert trainer.result.digest == shuffled.result.digest
    start = exchange.start(Lit().state_dict())
    moved = {name for name in trainer.arrays if not np.array_equal(trainer.arrays[name], start[name])}
    assert {COUNTS, "net.module.1.running_mean", "net.module.3.weight"} <= moved
    frozen = trainer.result.model.net.module[0].weight
    assert torch.equal(frozen, Lit().net.module[0].weight)
