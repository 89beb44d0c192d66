"""Ditto and FedRep: each client's own model, against the formulas and beside the global one."""

import lightning.pytorch as L
import numpy as np
import pytest
import torch
from _quadratic import (
    BATCH,
    CPU,
    RATE,
    SIZES,
    Quadratic,
    app,
    data,
    examples,
    fedavg,
    handwritten,
    local,
    mean,
    run,
    weights,
)
from flwr.clientapp import ClientApp

from lightning_fl_ext import (
    Ditto,
    ExactFedAvg,
    FedRep,
    FlowerBridge,
    LightningFLError,
    LocalGrid,
    RoundCallback,
    WeightExchange,
    client_app,
)

HEAD = {"exchange": WeightExchange(exclude="head")}


class Judged(Quadratic):
    def validation_step(self, batch, _):
        self.log("val_loss", self.loss(batch), batch_size=len(batch[0]))


def loss(client, w):
    a, t = examples(client)
    return (a * (w - t) ** 2).sum(1).mean() / 2


def ditto(rounds, strength):
    """The clients' own models."""
    w, own = np.zeros(3), {}
    for sampled in rounds:
        for i in sampled:
            own[i] = local(i, own.get(i, w), lambda g, v, near=w: g + strength * (v - near))
        w = mean({i: local(i, w) for i in sampled})
    return own


@pytest.mark.parametrize("keep", [True, False])
def test_ditto_s_models_are_those_of_the_formula_and_evaluated_beside_the_mean(keep, tmp_path):
    client = app(Judged, keep_local=tmp_path if keep else False)
    trainer = run(Ditto(0.5), client, rounds=2, model=Judged, evaluate=1.0)
    rounds = [range(4)] * 2
    np.testing.assert_allclose(weights(trainer), fedavg(rounds), rtol=1e-9)
    own, last = ditto(rounds, 0.5), trainer.rounds[-1].metrics
    for name, models in (("personal_val_loss", own), ("val_loss", dict.fromkeys(range(4), weights(trainer)))):
        losses = mean({i: loss(i, models[i]) for i in range(4)})
        np.testing.assert_allclose(last[name], losses, rtol=1e-6)
    assert last["personal_val_loss"] < last["val_loss"]


def test_ditto_leaves_the_global_model_as_it_is_to_the_bit(tmp_path):
    few = {"rounds": 2, "clients": 3}
    plain = run(ExactFedAvg(), app(keep_local=tmp_path / "plain"), **few)
    assert run(Ditto(0.5), app(keep_local=tmp_path / "own"), **few).result.digest == plain.result.digest


def test_ditto_goes_on_from_the_round_before_if_a_round_is_asked_for_again(tmp_path):
    from lightning_fl_ext import RoundCheckpoint

    class Kill(RoundCallback):
        def on_replies(self, trainer):
            if trainer.current_round == 2:
                raise KeyboardInterrupt

    def fit(folder, *callbacks, **options):
        options |= {"callbacks": [RoundCheckpoint(), *callbacks], "default_root_dir": tmp_path / folder}
        client = app(Judged, keep_local=tmp_path / folder / "own")
        return run(Ditto(0.5), client, rounds=2, clients=2, model=Judged, evaluate=1.0, **options)

    whole = fit("whole")
    with pytest.raises(KeyboardInterrupt):
        fit("killed", Kill())
    resumed = fit("killed", fit={"ckpt_path": "last"})
    assert resumed.rounds[-1].metrics == whole.rounds[-1].metrics


def test_ditto_is_refused_where_it_would_not_be_ditto(kit, tmp_path):
    with pytest.raises(LightningFLError, match="1 entries stay at home anyway, such as `head`"):
        run(Ditto(0.5), app(keep_local=tmp_path, **HEAD), rounds=1, **HEAD)
    with pytest.raises(LightningFLError, match=r"this client knows .*got `ditto`"):
        run(Ditto(0.5), handwritten(kit), rounds=1)


def test_own_models_are_tested_beside_the_final_one(tmp_path):
    class Tested(Quadratic):
        def test_step(self, batch, _):  # noqa: PT019
            self.log("test_loss", self.loss(batch), batch_size=len(batch[0]))

    class Data(L.LightningDataModule):
        def __init__(self, context):
            super().__init__()
            self.rows = data(context)

        def train_dataloader(self):
            return self.rows

        test_dataloader = train_dataloader

    client = client_app(Tested, lambda context: Data(context), {**CPU, "max_epochs": 2}, keep_local=tmp_path)
    trainer = run(Ditto(0.5), client, rounds=2, model=Tested)
    own = ditto([range(4)] * 2, 0.5)
    told = trainer.test(trainer.result.model, LocalGrid(client, 4))
    assert told["personal_test_loss"] == pytest.approx(mean({i: loss(i, own[i]) for i in range(4)}), rel=1e-6)
    globally = mean({i: loss(i, weights(trainer)) for i in range(4)})
    assert told["test_loss"] == pytest.approx(globally, rel=1e-6)


def test_both_fits_of_ditto_have_the_learning_rate_of_the_round():
    rates = []

    class Seen(Quadratic):
        def on_train_end(self):
            rates.append(self.optimizers().param_groups[0]["lr"])

    told = {"train_config": lambda server_round: {"learning-rate": 0.1 / server_round}}
    run(Ditto(0.5), app(Seen, keep_local=False), rounds=2, clients=1, **told)
    assert rates == [0.1, 0.1, 0.05, 0.05]


@pytest.mark.parametrize("keep", [True, False])
def test_ditto_does_not_begin_afresh_where_the_server_goes_back_beyond_what_is_kept(keep, kit, tmp_path):
    client, context = app(keep_local=tmp_path if keep else False), kit.context()

    def ask(server_round):
        message = kit.message(kit.arrays_of(Quadratic()), server_round=server_round)
        for key, value in {"algorithm": "ditto", "ditto-lambda": 0.5}.items():
            message.content["config"][key] = value
        return client(message, context)

    for server_round in (1, 1, 2, 3, 3):  # a killed server asks once more for what it had not written down
        ask(server_round)
    with pytest.raises(
        LightningFLError, match=r"rounds \[2, 3\], which go back to one of round 1: the server"
    ):
        ask(2)
    ask(4)


def fedrep(rounds, head_epochs, epochs):
    """The common body and the heads, as the paper's client does it: first the head alone, then the body."""
    body, heads = np.zeros(1), {i: np.zeros(2) for i in range(4)}
    for _ in range(rounds):
        bodies = {}
        for i in range(4):
            a, t = examples(i)
            w = np.concatenate([heads[i], body])
            for epoch in range(epochs):
                turn = slice(0, 2) if epoch < head_epochs else slice(2, 3)
                for at in range(0, SIZES[i], BATCH):
                    gradient = (a[at : at + BATCH] * (w - t[at : at + BATCH])).mean(0)
                    w[turn] -= RATE * gradient[turn]
            heads[i], bodies[i] = w[:2], w[2:]
        body = mean(bodies)
    return body, heads


@pytest.mark.parametrize("keep_optimizer", [False, True])  # with it, epochs are counted over the whole run
def test_fedrep_alternates_head_and_body_as_the_formula_does(keep_optimizer, tmp_path):
    folder = {"keep_optimizer": tmp_path} if keep_optimizer else {"keep_local": tmp_path}
    client = app(Judged, {"max_epochs": 3}, **folder, **HEAD)
    trainer = run(FedRep(head_epochs=2), client, rounds=2, model=Judged, evaluate=1.0, **HEAD)
    body, heads = fedrep(2, 2, 3)
    np.testing.assert_allclose(trainer.arrays["tail"], body, rtol=1e-9)
    assert "head" not in trainer.arrays
    losses = mean({i: loss(i, np.concatenate([heads[i], body])) for i in range(4)})
    np.testing.assert_allclose(trainer.rounds[-1].metrics["val_loss"], losses, rtol=1e-6)


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, lambda p: torch.optim.SGD(p, 0.1, momentum=0.9)])
def test_what_is_not_its_turn_stays_also_under_momentum(optimizer, tmp_path):
    seen = []

    class Watched(Quadratic):
        def on_train_epoch_end(self):
            seen.append((self.head.detach().clone(), self.tail.detach().clone()))

        def configure_optimizers(self):
            return optimizer(self.parameters())

    run(FedRep(), app(Watched, {"max_epochs": 2}, keep_local=tmp_path, **HEAD), rounds=1, clients=1, **HEAD)
    (head, tail), (head_after, tail_after) = seen
    assert head.any()
    assert not tail.any()
    assert torch.equal(head, head_after)
    assert tail_after.any()


def test_fedrep_without_a_head_or_an_epoch_for_the_body_is_refused(tmp_path):
    with pytest.raises(LightningFLError, match="Got 0 parameters that stay and 2 that travel"):
        run(FedRep(), app(keep_local=tmp_path), rounds=1)
    with pytest.raises(LightningFLError, match=r"gives the first 2 epochs to the head\. Got 2"):
        run(FedRep(head_epochs=2), app(keep_local=tmp_path, **HEAD), rounds=1, **HEAD)


def test_fedrep_on_clients_that_lose_their_heads_is_refused_before_any_trains():
    class Untrained(Judged):
        def training_step(self, batch, _):
            pytest.fail("a client trains")

    client = app(Untrained, {"max_epochs": 2}, keep_local=False, **HEAD)
    with pytest.raises(
        LightningFLError, match=r"nothing keeps it here \(head\)\. Leave out `client_app\(keep_local=F"
    ):
        run(FedRep(), client, rounds=1, **HEAD)


@pytest.mark.parametrize("keeps", [False, True])
def test_fedrep_by_hand_is_refused_unless_the_client_says_that_it_keeps_its_head(keeps, kit):
    by_hand, heads = ClientApp(), {}

    @by_hand.train()
    def train(message, context):
        bridge = FlowerBridge.from_message(message, context, exchange=HEAD["exchange"])
        bridge.keeps_local = keeps
        kit.fit(bridge, module=(module := Quadratic()), data=data(context), max_epochs=2)
        heads[bridge.client_id] = module.head.detach()
        return bridge.reply()

    if keeps:
        run(FedRep(), by_hand, rounds=1, **HEAD)
        assert len(heads) == 4
        assert all(head.all() for head in heads.values())
    else:
        with pytest.raises(LightningFLError, match=r"sets `bridge.keeps_local = True`"):
            run(FedRep(), by_hand, rounds=1, **HEAD)


@pytest.mark.parametrize("limit", [{"max_epochs": 2, "max_steps": 1}, {"max_epochs": -1, "max_steps": 1}])
def test_fedrep_whose_fit_ends_before_the_body_has_its_turn_is_refused(limit, tmp_path):
    with pytest.raises(LightningFLError, match="the fit ended before the body took a step"):
        run(FedRep(), app(trainer=limit, keep_local=tmp_path, **HEAD), rounds=1, **HEAD)


def test_fedrep_refuses_an_optimizer_that_steps_along_earlier_turns(tmp_path):
    class Remembers(Quadratic):
        def configure_optimizers(self):
            return torch.optim.LBFGS(self.parameters(), 0.1, max_iter=3)

    with pytest.raises(LightningFLError, match="Got LBFGS, which steps along directions of earlier turns"):
        run(FedRep(), app(Remembers, keep_local=tmp_path, **HEAD), rounds=1, **HEAD)
