"""The fit: hooks, errors, what travels, and the app around it."""

import pytest
import torch
from flwr.serverapp.strategy import FedAvg

from lightning_fl_ext import (
    ExactFedAvg,
    FederatedTrainer,
    LocalGrid,
    RoundCallback,
    RoundCheckpoint,
    digest,
    run_local,
    server_app,
)
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
        (1, "on_configure_train"),
        (1, "on_messages"),
        (1, "on_reply"),
        (1, "on_reply"),
        (1, "on_replies"),
        (1, "on_messages"),
        (1, "on_evaluation_reply"),
        (1, "on_evaluation_reply"),
        (1, "on_round_end"),
        (1, "on_fit_end"),
    ]
    for hook, metric in (("on_reply", "train_loss"), ("on_evaluation_reply", "val_loss")):
        replies = [args[0] for _, name, *args in callback.calls if name == hook]
        assert {reply.client_id for reply in replies} == {"00", "01"}
        assert all(reply.metrics.keys() == {metric} for reply in replies)
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
    "hook",
    [
        *("on_fit_start", "on_round_start", "on_messages", "on_reply", "on_evaluation_reply", "on_replies"),
        "on_round_end",
    ],
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
