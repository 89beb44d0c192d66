"""The same inputs give the same bits: whatever the arrival order, the node ids, the threads, the process."""

import itertools
import random

import lightning.pytorch as L
import numpy as np
import pytest
import torch
from flwr.app import Message, RecordDict
from flwr.serverapp.strategy import FedAvg
from threadpoolctl import threadpool_limits

from lightning_fl_ext import ExactFedAvg, LocalGrid, client_app, digest
from lightning_fl_ext.wire import from_record

PROVEN = ("ExactFedAvg", "FedAvg", "FedAdam", "FedMedian", "Krum", "DPServerFixed")


class Shuffle:
    """Lets the clients that train answer in one given order."""

    def __init__(self, order):
        self.order = order

    def __call__(self, messages):
        if messages[0].metadata.message_type != "train":
            return messages
        return [messages[i] for i in self.order]


@pytest.mark.parametrize("name", PROVEN)
def test_all_120_arrival_orders_of_five_clients_give_one_digest(toy, make_strategy, name):
    results = set()
    app = toy.make_app(metrics=lambda partition, _: {"train_loss": 0.1 * 3**partition})
    for order in itertools.permutations(range(5)):
        strategy = make_strategy(name)
        inner = getattr(strategy, "strategy", strategy)
        inner.fraction_evaluate, inner.min_evaluate_nodes = 0.0, 0
        result = toy.make_trainer(strategy, max_rounds=1).fit(
            toy.Net(), toy.make_grid(app=app, arrival=Shuffle(order))
        )
        results.add((result.digest, result.metrics["train_loss"]))
    assert len(results) == 1


def test_flower_alone_gives_many_results_for_these_clients(toy):
    seen = []

    class Keeping(FedAvg):
        def aggregate_train(self, server_round, replies):
            seen.extend(replies)
            return super().aggregate_train(server_round, seen)

    toy.make_trainer(Keeping(), max_rounds=1).fit(toy.Net(), toy.make_grid())
    results = {
        digest(from_record(FedAvg().aggregate_train(1, list(order))[0]))
        for order in itertools.permutations(seen)
    }
    assert len(results) > 1


@pytest.mark.parametrize("name", ["ExactFedAvg", "FedAvg"])
def test_nameless_clients_give_one_digest_for_all_orders_and_node_ids(toy, make_strategy, name):
    app = toy.make_app(query=False, client_record=False)
    digests = set()
    for seed in range(12):
        rng = random.Random(seed)
        grid = toy.make_grid(
            app=app,
            node_ids=rng.sample(range(2, 10**6), 5),
            arrival=lambda messages, rng=rng: rng.sample(messages, len(messages)),
        )
        digests.add(toy.make_trainer(make_strategy(name), max_rounds=1).fit(toy.Net(), grid).digest)
    assert len(digests) == 1


class ByNodeId(LocalGrid):
    """Lists its nodes by their random ids, so that the clients stand in another order every time."""

    def get_node_ids(self):
        return sorted(super().get_node_ids())


@pytest.mark.parametrize("name", PROVEN)
def test_a_fraction_of_the_clients_is_the_same_whatever_the_node_ids(toy, make_strategy, name):
    sampled, digests = set(), set()
    for seed in range(4):
        strategy = make_strategy(name)
        getattr(strategy, "strategy", strategy).fraction_train = 0.3
        grid = toy.make_grid(
            10, grid_class=ByNodeId, node_ids=random.Random(seed).sample(range(2, 2**60), 10)
        )
        result = toy.make_trainer(strategy, max_rounds=3).fit(toy.Net(), grid)
        sampled.add(tuple(record.sampled for record in result.rounds))
        digests.add(result.digest)
    assert len(digests) == 1
    (rounds,) = sampled
    assert all(len(clients) == 3 for clients in rounds)
    assert len(set(rounds)) > 1  # not always the same clients


def test_another_seed_samples_other_clients(toy):
    def rounds(seed):
        trainer = toy.make_trainer(ExactFedAvg(fraction_train=0.3), max_rounds=4, seed=seed)
        return [record.sampled for record in trainer.fit(toy.Net(), toy.make_grid(10)).rounds]

    assert rounds(1) != rounds(2)


@pytest.mark.parametrize("name", PROVEN)
def test_one_two_and_four_threads_give_one_digest(toy, make_strategy, name, monkeypatch):
    digests = set()
    threads_before = torch.get_num_threads()
    for threads in (1, 2, 4):
        monkeypatch.setattr("os.sched_getaffinity", lambda _, threads=threads: set(range(threads)))
        torch.set_num_threads(threads)
        with threadpool_limits(threads):
            trainer = toy.make_trainer(make_strategy(name))
            digests.add(trainer.fit(toy.Net(size=60_000).double(), toy.make_grid()).digest)
    torch.set_num_threads(threads_before)
    assert len(digests) == 1


class Lit(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3), torch.nn.Dropout(0.5))

    def training_step(self, batch, _):
        return self.net(batch[0]).square().mean()

    def validation_step(self, batch, _):
        self.log("val_loss", self.net(batch[0]).square().mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Data(L.LightningDataModule):
    def __init__(self, context):
        super().__init__()
        rng = np.random.default_rng(int(context.node_config["partition-id"]))
        self.rows = torch.tensor(rng.normal(size=(12, 4)), dtype=torch.float32)

    def train_dataloader(self):
        dataset = torch.utils.data.TensorDataset(self.rows)
        return torch.utils.data.DataLoader(dataset, batch_size=4, shuffle=True)

    def val_dataloader(self):
        return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(self.rows), batch_size=4)


@pytest.mark.usefixtures("untouched_random_state")
def test_real_fits_reproduce_and_leave_all_random_state_alone(toy):
    app = client_app(Lit, Data, trainer={"accelerator": "cpu"})
    digests = []
    for seed, order in ((3, (0, 1, 2)), (3, (2, 0, 1)), (4, (0, 1, 2))):
        grid = toy.make_grid(3, app, arrival=Shuffle(order))
        result = toy.make_trainer(seed=seed).fit(Lit, grid)
        digests.append(result.digest)
        assert result.model.net[1].num_batches_tracked.item() == 6  # three batches a round
        assert "val_loss" in result.metrics
    assert digests[0] == digests[1] != digests[2]


def test_a_list_of_replies_and_a_stream_of_them_give_one_digest(toy):
    seen = []

    class Keeping(ExactFedAvg):
        def aggregate_train(self, server_round, replies):
            seen.extend(replies)
            return super().aggregate_train(server_round, seen)

    model = toy.Net(buffers=True)
    toy.make_trainer(Keeping(), max_rounds=1).fit(model, toy.make_grid())
    results = [ExactFedAvg().aggregate_train(1, replies) for replies in (seen, iter(seen), seen[::-1])]
    assert len({digest(from_record(arrays)) for arrays, _ in results}) == 1
    assert results[0][1] == results[1][1]
    assert ExactFedAvg().aggregate_train(1, []) == ExactFedAvg().aggregate_train(1, iter([])) == (None, None)


def test_partial_means_of_two_aggregators_are_the_whole_mean(toy):
    from lightning_fl_ext import ExactMean

    model = {name: tensor.numpy() for name, tensor in toy.Net().state_dict().items()}
    updates = [(toy.local_fit(model, partition, 1), toy.examples(partition)) for partition in range(5)]
    left, right = ExactMean(model), ExactMean(model)
    left.add_many(updates[:2])
    right.add_many(updates[2:])
    right.merge(left)
    result = toy.make_trainer(max_rounds=1).fit(toy.Net(), toy.make_grid())
    assert digest(right.result()) == result.digest


@pytest.mark.parametrize("known_by", ["query", "reply", "registered name"])
def test_clients_are_known_by_their_declared_id(toy, known_by):
    app = toy.make_app(query=known_by == "query", client_record=known_by != "registered name")
    grid_class = _registered(toy) if known_by == "registered name" else type(toy.make_grid(2))
    result = toy.make_trainer().fit(toy.Net(), toy.make_grid(3, app, grid_class=grid_class))
    names = ("site-0", "site-1", "site-2") if known_by == "registered name" else ("00", "01", "02")
    assert result.rejected == []
    assert [record.accepted for record in result.rounds] == [names, names]


def test_a_registered_name_stands_whatever_the_client_calls_itself(toy):
    grid = toy.make_grid(3, toy.make_app(), grid_class=_registered(toy))
    result = toy.make_trainer().fit(toy.Net(), grid)
    assert result.rejected == []
    assert result.rounds[0].accepted == ("site-0", "site-1", "site-2")


def test_a_client_that_changes_its_id_is_not_the_one_that_was_sampled(toy):
    def rename(instruction, reply):
        if toy.is_train(instruction) and toy.client_of(reply) == "01":
            reply.content["client"]["client-id"] = "00"
        return reply

    result = toy.make_trainer(max_rounds=1).fit(toy.Net(), toy.make_grid(3, faults=rename))
    assert [(r.client_id, r.reason) for r in result.rejected] == [("01", "not-sampled")]


def _registered(toy):
    from types import SimpleNamespace

    class Registered(LocalGrid):
        def get_nodes(self):
            return [SimpleNamespace(node_id=n, name=f"site-{i}") for i, n in enumerate(self.get_node_ids())]

    return Registered


@pytest.mark.parametrize("name", ["ExactFedAvg", "FedAvg"])
@pytest.mark.parametrize("query", [True, False])
def test_two_nodes_of_one_name_are_both_left_out(toy, make_strategy, name, query):
    app = toy.make_app(
        query=query, name=lambda partition: "twin" if partition in (1, 3) else f"{partition:02d}"
    )
    result = toy.make_trainer(make_strategy(name), max_rounds=1).fit(toy.Net(), toy.make_grid(app=app))
    assert result.rounds[0].accepted == ("00", "02", "04")
    assert {(r.client_id, r.reason) for r in result.rejected} == {("twin", "duplicate-client")}


@pytest.mark.parametrize("name", ["ExactFedAvg", "FedAvg"])
@pytest.mark.parametrize("old_is_gone", [True, False])
def test_a_client_that_comes_back_as_another_node_replaces_one_that_is_gone(
    toy, make_strategy, name, old_is_gone
):
    """A SuperNode that was killed stays listed until Flower has missed it; started again it is another."""
    missed = set()

    class Restarted(LocalGrid):
        def get_node_ids(self):
            ids = list(super().get_node_ids())[: 4 if trainer.rounds else 3]
            return [node for node in ids if node not in missed]

    def lose_the_old(instruction, reply):
        if not (old_is_gone and trainer.rounds and instruction.metadata.dst_node_id == 11):
            return reply
        missed.add(11)
        return None

    app = toy.make_app(name=lambda partition: ("00", "01", "02", "01")[partition])
    trainer = toy.make_trainer(make_strategy(name))
    grid = Restarted(app, 4, node_ids=[10, 11, 12, 13], faults=lose_the_old)
    result = trainer.fit(toy.Net(), grid)
    assert result.rounds[0].accepted == ("00", "01", "02")
    assert result.rounds[1].accepted == (("00", "01", "02") if old_is_gone else ("00", "02"))
    assert {(r.client_id, r.reason) for r in result.rejected} == (
        set() if old_is_gone else {("01", "duplicate-client")}
    )


def test_error_replies_are_mapped_to_the_client_they_were_sent_to(toy):
    def vanish(instruction, reply):
        return None if toy.is_train(instruction) and toy.client_of(reply) == "02" else reply

    result = toy.make_trainer(max_rounds=1).fit(toy.Net(), toy.make_grid(faults=vanish))
    assert [(r.client_id, r.reason, r.got) for r in result.rejected] == [
        ("02", "no-reply", "Node unavailable")
    ]


def test_an_app_that_answers_queries_with_something_else_is_nameless(toy, caplog):
    app = toy.make_app(query=False)

    @app.query()
    def who(message, context):
        return Message(RecordDict(), reply_to=message)

    toy.make_trainer(max_rounds=1).fit(toy.Net(), toy.make_grid(2, app))
    assert "2 node(s) have no registered name" in caplog.text
