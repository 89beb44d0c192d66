"""A fit waits for clients as long as it may, and no longer."""

import pytest
from flwr.serverapp.strategy import FedAvg

from lightning_fl_ext import ExactFedAvg, LocalGrid, RoundCallback
from lightning_fl_ext.engines import NotEnoughClientsError
from lightning_fl_ext.errors import LightningFLError


class Remote(LocalGrid):
    """As if its clients were elsewhere: more may come, and answers take time."""

    in_process = False

    def pull_messages(self, message_ids):
        replies = []
        while more := list(super().pull_messages(message_ids)):
            replies += more
        return replies


def test_too_few_clients_in_process_are_an_error_at_once(toy):
    with pytest.raises(
        NotEnoughClientsError, match=r"2 client\(s\).*At least 5 are needed: ExactFedAvg\(min_avail"
    ):
        toy.make_trainer(ExactFedAvg(min_available_nodes=5)).fit(toy.Net(), toy.make_grid(2))


def test_fewer_clients_than_updates_have_to_count_are_too_few(toy):
    with pytest.raises(
        NotEnoughClientsError, match=r"2 client\(s\).*At least 3 are needed: FederatedTrainer\(min_accepted=3"
    ):
        toy.make_trainer(min_accepted=3).fit(toy.Net(), toy.make_grid(2))


def test_a_strategy_that_asks_fewer_than_have_to_count_is_stopped_before_they_train(toy):
    trained = []
    app = toy.make_app(fit=lambda arrays, *_: trained.append(1) or arrays)
    trainer = toy.make_trainer(ExactFedAvg(fraction_train=0.4), min_accepted=3)
    with pytest.raises(
        LightningFLError, match=r"asks 2 client\(s\) to train in round 1, but `min_accepted` is 3"
    ):
        trainer.fit(toy.Net(), toy.make_grid(5, app))
    assert trained == []


def test_too_few_clients_elsewhere_are_waited_for_until_the_timeout(toy, caplog):
    trainer = toy.make_trainer(FedAvg(min_train_nodes=3), round_timeout=0.15)
    with pytest.raises(NotEnoughClientsError, match=r"2 client\(s\).*FedAvg\(min_train_nodes=3\)"):
        trainer.fit(toy.Net(), toy.make_grid(2, grid_class=Remote))
    assert "waiting for clients: 2 connected, 3 needed by FedAvg(min_train_nodes=3)" in caplog.text


def test_clients_that_come_later_are_waited_for(toy):
    class Growing(Remote):
        asked = 0

        def get_node_ids(self):
            self.asked += 1
            return list(super().get_node_ids())[: self.asked]

    result = toy.make_trainer(max_rounds=1).fit(toy.Net(), toy.make_grid(2, grid_class=Growing))
    assert result.rounds[0].accepted == ("00", "01")


def test_clients_that_leave_after_training_are_not_waited_for_when_nobody_is_asked_to_evaluate(toy):
    class Leaving(LocalGrid):
        trained = False

        def get_node_ids(self):
            return list(super().get_node_ids())[: 2 if self.trained else 3]

    class Tell(RoundCallback):
        def on_replies(self, trainer):
            grid.trained = True

    grid = toy.make_grid(3, grid_class=Leaving)
    strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=3)
    result = toy.make_trainer(strategy, max_rounds=1, callbacks=Tell()).fit(toy.Net(), grid)
    assert result.rounds[0].accepted == ("00", "01", "02")


def test_a_strategy_that_waits_for_more_than_it_says_is_stopped(toy):
    class Greedy(FedAvg):
        def configure_train(self, server_round, arrays, config, grid):
            while len(list(grid.get_node_ids())) < 9:
                pass
            return super().configure_train(server_round, arrays, config, grid)

    with pytest.raises(NotEnoughClientsError, match=r"2 client\(s\) are connected"):
        toy.make_trainer(Greedy(), round_timeout=0.01).fit(toy.Net(), toy.make_grid(2, grid_class=Remote))


class Deaf(Remote):
    """Some clients never answer when asked to train."""

    silent = 1

    def pull_messages(self, message_ids):
        nodes = self.get_node_ids()[-self.silent :]
        heard = {
            m
            for m in message_ids
            if not (
                m in self._pending
                and self._pending[m].metadata.dst_node_id in nodes
                and self._pending[m].metadata.message_type == "train"
            )
        }
        return super().pull_messages(heard)


def test_a_round_that_times_out_names_the_missing_and_goes_on(toy, make_strategy):
    for name in ("ExactFedAvg", "FedAvg"):
        trainer = toy.make_trainer(make_strategy(name), max_rounds=1, round_timeout=0.05)
        result = trainer.fit(toy.Net(), toy.make_grid(3, grid_class=Deaf))
        assert [(r.client_id, r.reason, r.expected) for r in result.rejected] == [
            ("02", "no-reply", "a reply within 0.05 s")
        ]
        assert result.rounds[0].accepted == ("00", "01")


def test_a_round_in_which_nobody_answers_is_an_error_with_numbers(toy):
    class Silent(Deaf):
        silent = 3

    with pytest.raises(
        NotEnoughClientsError, match=r"none of the 3 clients asked in round 1 answered within 0.05 s"
    ):
        toy.make_trainer(round_timeout=0.05).fit(toy.Net(), toy.make_grid(3, grid_class=Silent))


def test_clients_in_this_process_have_no_timeout(toy):
    result = toy.make_trainer(round_timeout=0.0).fit(toy.Net(), toy.make_grid(3))
    assert result.rejected == []
