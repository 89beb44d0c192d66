"""What the functions that make model, data and Trainer are called with, and which are refused."""

import functools
from typing import Any

import lightning.pytorch as L
import pytest
from flwr.app import Context

from lightning_fl_ext import (
    ClientRound,
    FederatedTrainer,
    FlowerBridge,
    LightningFLError,
    LocalGrid,
    client_app,
)
from lightning_fl_ext.client.factories import asks_for

DEVICE = {"accelerator": "cpu", "devices": 1}
ROUND = ClientRound("site-a", 2, 9, {"run-seed": 3}, object(), {})


def annotated(told: ClientRound, where: "Context"):
    return told, where


def both(context, round):
    return round, context


def by_position(context, /):
    return context


class Takes:
    def __init__(self, round: Any, size=3):
        self.told = round


@pytest.mark.parametrize(
    ("factory", "expected"),
    [
        (lambda context: context, ROUND.context),
        (lambda ctx: ctx, ROUND.context),
        (lambda _: _, ROUND.context),
        (lambda c: c, ROUND.context),
        (lambda *args: args, (ROUND.context,)),
        (lambda context=None: context, ROUND.context),
        (lambda round: round, ROUND),
        (lambda client_round: client_round, ROUND),
        (annotated, (ROUND, ROUND.context)),
        (both, (ROUND, ROUND.context)),
        (by_position, ROUND.context),
        (functools.partial(both, context=1), (ROUND, ROUND.context)),
        (lambda batch_size=3, *, round: (batch_size, round), (3, ROUND)),
    ],
)
def test_data_is_given_what_it_asks_for(factory, expected):
    assert asks_for(factory, "data")(ROUND) == expected


def test_so_are_classes_and_the_other_two():
    assert asks_for(Takes, "model")(ROUND).told is ROUND
    assert asks_for(lambda: 1, "model")(ROUND) == 1
    assert asks_for(lambda round: {"max_epochs": round.server_round}, "trainer")(ROUND) == {"max_epochs": 2}


def test_a_models_own_uses_of_these_names_are_left_alone():
    def model(round=4, context: int = 512, *, told: ClientRound = None):
        return round, context, told

    assert asks_for(model, "model")(ROUND) == (4, 512, ROUND)


def test_a_model_function_that_the_server_calls_without_a_round_is_given_it():
    def model(size, round=None, context=None):
        return size, round, context

    assert asks_for(functools.partial(model, 3), "model")(ROUND) == (3, ROUND, ROUND.context)

    class Module:
        def __init__(self, size=3, context=None):
            self.context = context

    assert asks_for(functools.partial(Module, size=4), "model")(ROUND).context is None


class Digits(L.LightningDataModule):
    def __init__(self, data_dir="./data", batch_size=32):
        super().__init__()


@pytest.mark.parametrize(
    ("factory", "name", "says"),
    [
        (
            Digits,
            "data",
            r"It takes `data_dir`, `batch_size`. Write `data=lambda context: Digits\(data_dir=\.\.\.",
        ),
        (lambda batch_size: None, "data", "It takes `batch_size`"),
        (lambda: None, "data", "It takes nothing"),
        (lambda context, folder: None, "data", "It takes `context`, `folder`"),
        (lambda context: None, "model", None),
        (lambda hidden: None, "model", r"`model=lambda: \.\.\.\(hidden=\.\.\.\)`"),
        (lambda epochs: {}, "trainer", "`trainer` is called without arguments"),
    ],
)
def test_others_are_refused_with_the_remedy(factory, name, says):
    if says is None:
        asks_for(factory, name)
        return
    with pytest.raises(TypeError, match=says):
        asks_for(factory, name)


def test_clients_learn_their_round_in_every_factory_and_from_the_bridge(kit):
    seen = []

    def model(round):
        seen.append(("model", round))
        return kit.Validated()

    def data(context, round):
        assert context is round.context
        seen.append(("data", round))
        return kit.loader(10 + context.node_config["partition-id"])

    def trainer(round):
        seen.append(("trainer", round))
        return {**DEVICE, "max_epochs": round.server_round}

    server = FederatedTrainer(max_rounds=2, seed=5, enable_progress_bar=False)
    server.fit(kit.Validated, LocalGrid(client_app(model, data, trainer), 3))
    told = [round for _, round in seen]
    assert [name for name, _ in seen[:3]] == ["trainer", "model", "data"]
    assert {(t.client_id, t.server_round, t.max_rounds) for t in told} == {
        (c, r, 2) for c in "012" for r in (1, 2)
    }
    assert all(t.config["run-seed"] == 5 for t in told)
    assert all(list(t.weights) == list(server.arrays) for t in told)
    with pytest.raises(ValueError, match="read-only"):
        told[0].weights["layer.weight"][0] = 1


def test_a_bridge_made_from_a_message_tells_its_round_and_another_says_that_it_cannot(kit):
    bridge = FlowerBridge.from_message(
        kit.message(kit.arrays_of(kit.Lit()), server_round=4), kit.context(1, of=3)
    )
    assert (bridge.round.client_id, bridge.round.server_round, bridge.round.max_rounds) == ("1", 4, 0)
    with pytest.raises(LightningFLError, match="from_message"):
        FlowerBridge().round  # noqa: B018


def test_what_a_trainer_factory_gives_is_checked(kit):
    client = client_app(kit.Lit, lambda _: kit.loader(), lambda: {"max_epoch": 2})
    with pytest.raises(TypeError, match=r"holds \['max_epoch'\]"):
        client(kit.message(kit.arrays_of(kit.Lit())), kit.context())
