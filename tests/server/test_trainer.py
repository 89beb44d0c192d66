"""The fit: hooks, errors, waiting, evaluation, and the app around it."""

import re

import lightning.pytorch as L
import numpy as np
import pytest
import torch
from flwr.serverapp.strategy import FedAvg
from lightning.pytorch.loggers import CSVLogger

from lightning_fl_ext import (
    ExactFedAvg,
    FederatedTrainer,
    LocalGrid,
    RoundCallback,
    RoundCheckpoint,
    RoundEarlyStopping,
    digest,
    run_local,
    server_app,
)
from lightning_fl_ext.engines import NotEnoughClientsError
from lightning_fl_ext.errors import LightningFLError
from lightning_fl_ext.server import CallbackError
from lightning_fl_ext.wire import from_record


class Recording(RoundCallback):
    def __init__(self):
        self.calls = []

    def __getattribute__(self, name):
        if name.startswith("on_"):
            return lambda trainer, *args: self.calls.append((trainer.current_round, name, *args))
        return super().__getattribute__(name)


def test_hooks_are_called_in_order(toy):
    callback = Recording()
    toy.make_trainer(callbacks=callback, max_rounds=1).fit(toy.Net(), toy.make_grid(2))
    assert [(number, name) for number, name, *_ in callback.calls] == [
        (0, "on_fit_start"),
        (1, "on_round_start"),
        (1, "on_messages"),
        (1, "on_reply"),
        (1, "on_reply"),
        (1, "on_replies"),
        (1, "on_messages"),
        (1, "on_reply"),
        (1, "on_reply"),
        (1, "on_round_end"),
        (1, "on_fit_end"),
    ]
    replies = [args[0] for _, name, *args in callback.calls if name == "on_reply"]
    assert [reply and reply.client_id for reply in replies[2:]] == [None, None]
    assert {reply.client_id for reply in replies[:2]} == {"00", "01"}
    assert next(args for _, name, *args in callback.calls if name == "on_messages") == [["00", "01"]]


def test_hooks_of_several_callbacks_are_called_in_the_order_given(toy):
    order = []

    class Named(RoundCallback):
        def __init__(self, name):
            self.name = name

        def on_round_end(self, trainer):
            order.append(self.name)

    toy.make_trainer(callbacks=[Named("a"), Named("b")], max_rounds=1).fit(toy.Net(), toy.make_grid(2))
    assert order == ["a", "b"]


@pytest.mark.parametrize(
    "hook", ["on_fit_start", "on_round_start", "on_messages", "on_reply", "on_replies", "on_round_end"]
)
def test_an_error_in_a_callback_names_it_the_hook_and_the_round(toy, hook):
    told = []

    class Broken(RoundCallback):
        def on_exception(self, trainer, exception):
            told.append(exception)

    def fail(self, trainer, *_):
        if trainer.current_round == (0 if hook == "on_fit_start" else 2):
            raise KeyError("oops")

    setattr(Broken, hook, fail)
    expected = rf"Broken\.{hook} raised in round {0 if hook == 'on_fit_start' else 2}: KeyError: 'oops'"
    with pytest.raises(CallbackError, match=expected) as error:
        toy.make_trainer(callbacks=Broken()).fit(toy.Net(), toy.make_grid(2))
    assert isinstance(error.value.__cause__, KeyError)
    assert told == [error.value]


def test_a_second_error_while_reporting_hides_neither(toy, caplog):
    class Broken(RoundCallback):
        def on_round_end(self, trainer):
            raise KeyError("first")

        def on_exception(self, trainer, exception):
            raise ValueError("second")

    with pytest.raises(CallbackError, match="first"):
        toy.make_trainer(callbacks=Broken()).fit(toy.Net(), toy.make_grid(2))
    assert "Broken.on_exception raised as well" in caplog.text


def test_a_callback_can_stop_the_run(toy):
    class Stop(RoundCallback):
        def on_round_end(self, trainer):
            trainer.should_stop = trainer.current_round == 2

    assert len(toy.make_trainer(callbacks=Stop(), max_rounds=9).fit(toy.Net(), toy.make_grid(2)).rounds) == 2


def test_the_trainer_tells_how_far_it_is(toy):
    trainer = toy.make_trainer(max_rounds=3)
    result = trainer.fit(toy.Net(), toy.make_grid(2))
    assert trainer.current_round == 3
    assert trainer.result is result
    assert trainer.callback_metrics == result.rounds[-1].metrics == result.metrics
    assert tuple(trainer.rounds) == result.rounds
    state = {name: tensor.numpy() for name, tensor in result.model.state_dict().items()}
    assert digest(state) == result.digest == result.rounds[-1].digest


def test_a_model_given_as_a_class_starts_the_same_under_one_seed():
    def start(seed):
        trainer = FederatedTrainer(max_rounds=0, seed=seed, enable_progress_bar=False)
        return trainer.fit(lambda: torch.nn.Linear(3, 3), LocalGrid(_silent(), 2)).digest

    assert start(1) == start(1) != start(2)


def _silent():
    from flwr.clientapp import ClientApp

    return ClientApp()


# Central evaluation and validation


def squares(model):
    assert not model.training
    assert not torch.is_grad_enabled()
    return {"squares": float(model.weight.square().sum())}


def test_the_global_model_is_evaluated_before_the_first_round_and_after_each(toy):
    result = toy.make_trainer().fit(toy.Net(), toy.make_grid(2), evaluate=squares)
    assert [record.server_round for record in result.rounds] == [0, 1, 2]
    final = float(result.model.weight.detach().square().sum())
    assert result.rounds[-1].metrics["server_squares"] == pytest.approx(final)
    assert result.rounds[0].metrics["server_squares"] == pytest.approx(
        float(toy.Net().weight.detach().square().sum())
    )


class Lit(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([2.0]))

    def validation_step(self, batch, _):
        self.log("val_loss", (batch * self.weight).mean())


class Data(L.LightningDataModule):
    def val_dataloader(self):
        return torch.utils.data.DataLoader(torch.arange(4.0), batch_size=2)


@pytest.mark.parametrize("data", [Data(), Data().val_dataloader()], ids=["DataModule", "DataLoader"])
def test_central_evaluation_takes_data_for_a_trainer(toy, data):
    result = toy.make_trainer(max_rounds=1).fit(Lit(), toy.make_grid(2), evaluate=data)
    expected = 1.5 * float(result.model.weight.detach())
    assert result.rounds[0].metrics["server_val_loss"] == pytest.approx(3.0)
    assert result.rounds[1].metrics["server_val_loss"] == pytest.approx(expected)
    assert result.model.training


def test_validate_evaluates_on_the_clients_and_on_the_server(toy):
    trainer = toy.make_trainer()
    metrics = trainer.validate(toy.Net(), toy.make_grid(3), evaluate=squares)
    loss = float(toy.Net().weight.detach().double().square().sum())
    weights = np.array([1, 2, 3]) / 6
    assert metrics == pytest.approx(
        {"val_loss": float((weights * (loss + np.array([0, 0.1, 0.2]))).sum()), "server_squares": loss},
        rel=1e-6,
    )
    assert trainer.rounds[0].digest == digest({k: t.numpy() for k, t in toy.Net().state_dict().items()})


EVALUATIONS = {
    "raises": (lambda model: 1 / 0, "ZeroDivisionError: division by zero"),
    "no mapping": (lambda model: 0.5, "it must return a mapping from names to numbers. Got 0.5"),
    "nothing": (lambda model: None, "Got None"),
    "word": (lambda model: {"loss": "low"}, "it must return a number for `loss`. Got 'low'"),
    "several numbers": (
        lambda model: {"loss": torch.ones(3)},
        "number for `loss`. Got an instance of Tensor",
    ),
    "nested": (lambda model: {"a": {"b": 1.0}}, "it must return a number for `a`. Got an instance of dict"),
}


@pytest.mark.parametrize("case", sorted(EVALUATIONS))
def test_an_evaluation_that_fails_is_named_with_the_round(toy, case):
    function, says = EVALUATIONS[case]
    wrong = iter([False, True])
    with pytest.raises(LightningFLError, match=f"`evaluate` failed after round 1: .*{re.escape(says)}"):
        toy.make_trainer().fit(
            toy.Net(), toy.make_grid(2), evaluate=lambda m: function(m) if next(wrong) else {}
        )


def test_what_can_evaluate_no_module_is_refused_before_the_first_round(toy):
    with pytest.raises(TypeError, match=r"Got the class Data: write `Data\(...\)`"):
        toy.make_trainer().fit(Lit(), toy.make_grid(2), evaluate=Data)
    with pytest.raises(TypeError, match=r"LightningModule only; `model` is an instance of Net"):
        toy.make_trainer().fit(toy.Net(), toy.make_grid(2), evaluate=Data())
    with pytest.raises(TypeError, match=r"`evaluate` must be a function of the module.* Got True"):
        toy.make_trainer().validate(toy.Net(), toy.make_grid(2), evaluate=True)


def test_numbers_of_every_kind_are_taken_from_an_evaluation(toy):
    def evaluate(model):
        return {"t": torch.tensor(1.5), "n": np.float32(2.5), "i": 3, "w": model.weight.sum()}

    metrics = toy.make_trainer().validate(toy.Net(), toy.make_grid(2), evaluate)
    assert (metrics["server_t"], metrics["server_n"], metrics["server_i"]) == (1.5, 2.5, 3.0)
    assert all(type(value) is float for value in metrics.values())


def test_validating_nothing_is_pointed_out(toy, caplog):
    trainer = toy.make_trainer(ExactFedAvg(fraction_evaluate=0.0))
    assert trainer.validate(toy.Net(), toy.make_grid(2)) == {}
    assert "nothing was measured: the strategy asks no client to evaluate" in caplog.text


@pytest.mark.parametrize("method", ["log_metrics", "save", "finalize"])
def test_a_logger_that_fails_is_named_with_the_round(toy, tmp_path, method):
    def full(self, *_, **__):
        raise OSError("disk full")

    broken = type("Broken", (CSVLogger,), {method: full})(tmp_path)
    with pytest.raises(LightningFLError, match=r"logger Broken raised in round \d: OSError: disk full"):
        toy.make_trainer(logger=broken).fit(toy.Net(), toy.make_grid(2))


def test_a_logger_that_cannot_be_closed_does_not_hide_why(toy, tmp_path, caplog):
    class Broken(CSVLogger):
        def finalize(self, status):
            raise OSError(status)

    class Failing(RoundCallback):
        def on_round_end(self, trainer):
            raise KeyError("first")

    trainer = toy.make_trainer(logger=Broken(tmp_path), callbacks=Failing())
    with pytest.raises(CallbackError, match="first"):
        trainer.fit(toy.Net(), toy.make_grid(2))
    assert "Broken.finalize raised as well" in caplog.text


def test_validate_says_when_there_are_too_few_clients(toy):
    with pytest.raises(NotEnoughClientsError, match=r"1 client.*At least 2"):
        toy.make_trainer().validate(toy.Net(), toy.make_grid(1))


def test_train_and_evaluate_metrics_of_one_name_are_both_kept(toy):
    app = toy.make_app(metrics=lambda partition, _: {"val_loss": 5.0})
    result = toy.make_trainer(max_rounds=1).fit(toy.Net(), toy.make_grid(2, app))
    assert result.metrics["fit_val_loss"] == pytest.approx(5.0)
    assert result.metrics["val_loss"] != pytest.approx(5.0)


def no_evaluations_in(toy, *rounds):
    def faults(instruction, reply):
        asked = instruction.metadata.message_type == "evaluate"
        return None if asked and instruction.content["config"]["server-round"] in rounds else reply

    return faults


def test_a_metric_keeps_its_name_in_a_round_whose_evaluations_are_missing(toy, tmp_path):
    def fit(rounds, **options):
        app = toy.make_app(metrics=lambda partition, _: {"val_loss": 5.0})
        grid = toy.make_grid(3, app, faults=no_evaluations_in(toy, 2))
        options = {"callbacks": RoundCheckpoint(), "default_root_dir": tmp_path, **options}
        return toy.make_trainer(max_rounds=rounds, **options).fit(toy.Net(), grid, ckpt_path="last")

    fit(1)
    for result in (fit(2), fit(3)):
        assert all(record.metrics["fit_val_loss"] == pytest.approx(5.0) for record in result.rounds)
        assert ["val_loss" in record.metrics for record in result.rounds] == [True, False, True][
            : len(result.rounds)
        ]


def test_a_monitored_metric_may_be_missing_in_a_round_though_not_in_all(toy, tmp_path):
    checkpoint = RoundCheckpoint(monitor="val_loss", keep_last=None)
    callbacks = [RoundEarlyStopping("val_loss", patience=3), checkpoint]
    trainer = toy.make_trainer(callbacks=callbacks, max_rounds=4, default_root_dir=tmp_path)
    result = trainer.fit(toy.Net(), toy.make_grid(3, faults=no_evaluations_in(toy, 2)))
    losses = {r.server_round: r.metrics["val_loss"] for r in result.rounds if "val_loss" in r.metrics}
    assert sorted(losses) == [1, 3, 4]
    assert checkpoint.best_path.name == f"round-{min(losses, key=losses.get):05d}"


# Waiting


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


# What travels


def test_what_a_pattern_excludes_stays_as_it_is(toy):
    from lightning_fl_ext import WeightExchange

    trainer = toy.make_trainer(exchange=WeightExchange(exclude="bias"))
    result = trainer.fit(toy.Net(), toy.make_grid(2))
    assert result.model.bias.tolist() == toy.Net().bias.tolist()
    assert result.model.weight.tolist() != toy.Net().weight.tolist()


def test_clients_receive_the_model_s_own_dtypes_and_the_run_s_seed(toy):
    seen = []

    def fit(arrays, partition, server_round):
        seen.append({name: array.dtype.name for name, array in arrays.items()})
        return toy.local_fit(arrays, partition, server_round)

    model = toy.Net(buffers=True)
    toy.make_trainer(FedAvg(), max_rounds=1).fit(model, toy.make_grid(2, toy.make_app(fit=fit)))
    expected = {k: str(t.dtype).removeprefix("torch.") for k, t in model.state_dict().items()}
    assert seen == [expected, expected]


def test_a_run_without_training_only_evaluates(toy):
    result = toy.make_trainer(ExactFedAvg(fraction_train=0.0)).fit(toy.Net(), toy.make_grid(2))
    assert not any(record.void for record in result.rounds)
    assert "val_loss" in result.metrics
    assert result.digest == digest({k: t.numpy() for k, t in toy.Net().state_dict().items()})


# The app


def test_the_server_app_runs_and_leaves_the_weights_and_the_digest(toy):
    trainer = toy.make_trainer()
    context = run_local(server_app(toy.Net, trainer), toy.make_app(), num_clients=3)
    assert (
        context.state["result"]["digest"]
        == trainer.result.digest
        == digest(from_record(context.state["arrays"]))
    )
    assert context.state["result"]["rounds"] == 2


def test_the_run_config_can_tell_the_server_app_to_go_on(toy, tmp_path):
    def run(rounds, **config):
        trainer = toy.make_trainer(callbacks=RoundCheckpoint(), default_root_dir=tmp_path, max_rounds=rounds)
        run_local(server_app(toy.Net, trainer), toy.make_app(), num_clients=3, run_config=config)
        return trainer.result.digest

    run(2)
    whole = toy.make_trainer(max_rounds=4).fit(toy.Net(), toy.make_grid(3)).digest
    assert run(4, **{"ckpt-path": "last"}) == whole
