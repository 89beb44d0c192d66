"""`client_app`: a whole client, in Flower's own ClientApp and under the local engine."""

import random

import lightning.pytorch as L
import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch.utils.data import DataLoader

from lightning_fl_ext import LightningFLError, LocalGrid, WeightExchange, client_app, digest
from lightning_fl_ext.seeds import derive_seed
from lightning_fl_ext.wire import from_record, to_record

DEVICE = {"accelerator": "cpu", "devices": 1}


@pytest.fixture
def source(kit):
    return kit.arrays_of(kit.fresh_module(1))


@pytest.fixture
def noisy(kit):
    """Trains with dropout and shuffled data, so every source of chance matters."""

    class Noisy(kit.Lit):
        def loss(self, batch):
            x, y = batch
            x = torch.nn.functional.dropout(x, 0.5) + random.random() * 1e-2 + np.random.rand() * 1e-2  # noqa: NPY002
            return super().loss((x, y))

    return Noisy


def shuffled(kit):
    return lambda context: kit.loader(n=14 + 2 * context.node_config["partition-id"], shuffle=True)


def weights(reply):
    assert reply.has_content(), reply.error
    return from_record(reply.content["arrays"])


def test_a_train_message_gets_a_plain_reply(kit, source):
    client = client_app(kit.Lit, lambda _: kit.loader(), {"max_epochs": 2, **DEVICE})
    reply = client(kit.message(source, server_round=4), kit.context(3, of=20))

    reference = kit.fresh_module(0)
    reference.load_state_dict({k: torch.from_numpy(v) for k, v in source.items()})
    kit.fit(module=reference, max_epochs=2)
    kit.assert_same(weights(reply), kit.arrays_of(reference))
    assert reply.content["metrics"]["num-examples"] == 10
    assert dict(reply.content["client"]) == {
        "client-id": "03",
        "server-round": 4,
        "examples-seen": 20,
        "steps": 6,
        "epochs": 2,
    }


def test_an_evaluate_message_gets_the_metrics_of_the_weights_it_brought(kit, source):
    client = client_app(kit.Validated, lambda _: kit.loader(), DEVICE)
    reply = client(kit.message(source, "evaluate"), kit.context())
    trainer = kit.trainer()
    trainer.validate(kit.fresh_module(1, kit.Validated), kit.loader(), verbose=False)
    assert reply.content["metrics"]["val_loss"] == float(trainer.callback_metrics["val_loss"])
    assert reply.content["metrics"]["num-examples"] == 10
    assert not reply.content.array_records


def test_a_data_module_may_serve_both(kit, source):
    class Data(L.LightningDataModule):
        def train_dataloader(self):
            return kit.loader(n=11)

        def val_dataloader(self):
            return kit.loader(n=5)

    client = client_app(kit.Validated, lambda _: Data(), DEVICE)
    counts = [
        client(kit.message(source, kind), kit.context()).content["metrics"]["num-examples"]
        for kind in ("train", "evaluate")
    ]
    assert counts == [11, 5]


def test_a_query_answers_who_the_client_is(kit):
    client = client_app(kit.Lit, lambda _: kit.loader())
    assert client(kit.message(kind="query"), kit.context(7, of=100)).content["client"] == {"client-id": "07"}
    named = kit.context(7, of=100, **{"client-id": "site-a"})
    assert client(kit.message(kind="query"), named).content["client"] == {"client-id": "site-a"}


@pytest.mark.parametrize(
    "change", [{"run_seed": 1}, {"server_round": 2}, {"partition": 1}], ids=["run_seed", "round", "client"]
)
def test_chance_depends_on_run_seed_round_and_client_alone(kit, source, noisy, change):
    def run(run_seed=0, server_round=1, partition=0, node_id=7):
        client = client_app(noisy, lambda _: kit.loader(shuffle=True), DEVICE)
        message = kit.message(source, run_seed=run_seed, server_round=server_round, node_id=node_id)
        return digest(weights(client(message, kit.context(partition, of=9))))

    torch.manual_seed(1)
    once = run()
    torch.manual_seed(2)
    random.seed(3)
    assert run(node_id=8) == once
    assert run(**change) != once


def test_the_initial_weights_are_seeded_too(kit, source):
    """A head that stays at home is built by the client: the same on every machine."""
    exchange = WeightExchange(exclude="layer.*")
    body = {k: v for k, v in source.items() if not k.startswith("layer.")}
    heads = []

    class Shows(kit.Lit):
        def on_fit_start(self):
            heads.append(self.layer.weight.detach().clone())

    for _ in range(2):
        torch.rand(3)
        client_app(Shows, lambda _: kit.loader(), DEVICE, exchange=exchange)(kit.message(body), kit.context())
    assert torch.equal(*heads)


def test_the_process_keeps_its_own_random_state(kit, source, noisy):
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002
    torch.manual_seed(5)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002
    client = client_app(noisy, lambda _: kit.loader(shuffle=True), DEVICE)
    client(kit.message(source), kit.context())
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002
    assert before == after


@pytest.mark.parametrize("arrival", [None, lambda messages: messages[::-1]], ids=["as_sent", "reversed"])
def test_every_client_gives_the_same_bytes_in_whatever_order_they_run(kit, source, noisy, arrival):
    client = client_app(noisy, shuffled(kit), {"max_epochs": 2, **DEVICE})
    alone = {}
    for partition in range(4):
        reply = client(kit.message(source), kit.context(partition, of=4))
        alone[reply.content["client"]["client-id"]] = digest(weights(reply))

    grid = LocalGrid(client, num_clients=4, arrival=arrival)
    messages = [kit.message(source, node_id=node) for node in grid.get_node_ids()]
    together = {r.content["client"]["client-id"]: digest(weights(r)) for r in grid.send_and_receive(messages)}
    assert together == alone
    assert len(set(alone.values())) == 4


class Remembers(Callback):
    runs = 0

    def __init__(self):
        self.used = 0

    def on_fit_start(self, trainer, pl_module):
        self.used += 1
        assert self.used == 1, "a callback of an earlier fit"
        type(self).runs += 1


@pytest.fixture
def ambient_threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_with_num_threads_a_fit_gives_the_same_bytes_on_any_number_of_threads(kit, ambient_threads):
    class Images(kit.Lit):
        """Convolutions sum over images and pixels: in parts, one a thread."""

        def __init__(self):
            super().__init__()
            layers = torch.nn.Conv2d(3, 32, 3), torch.nn.ReLU(), torch.nn.Conv2d(32, 64, 3), torch.nn.ReLU()
            self.images = torch.nn.Sequential(*layers)

        def loss(self, batch):
            images = torch.randn(32, 3, 24, 24, generator=torch.Generator().manual_seed(0))
            return super().loss(batch) + self.images(images).square().mean()

    def digests(**options):
        client = client_app(Images, lambda _: kit.loader(), DEVICE, **options)
        message = kit.message(kit.arrays_of(Images()))
        for ambient in (1, 2):
            ambient_threads(ambient)
            yield digest(weights(client(message, kit.context())))
            assert torch.get_num_threads() == ambient

    if len(set(digests())) == 1:
        pytest.skip("this machine sums alike on one and on two threads")
    assert len(set(digests(num_threads=1))) == 1


@pytest.mark.parametrize("as_list", [True, False])
def test_callbacks_are_copied_for_every_fit(kit, source, as_list):
    Remembers.runs = 0
    callback = Remembers()
    client = client_app(
        kit.Lit, lambda _: kit.loader(), {"callbacks": [callback] if as_list else callback, **DEVICE}
    )
    for server_round in (1, 2):
        client(kit.message(source, server_round=server_round), kit.context())
    assert (callback.used, Remembers.runs) == (0, 2)


def test_what_the_user_asks_of_the_trainer_holds(kit, source):
    seen = {}

    class Looks(kit.Lit):
        def on_fit_start(self):
            seen["epochs"], seen["logger"] = self.trainer.max_epochs, self.trainer.logger

    client = client_app(Looks, lambda _: kit.loader(), DEVICE)
    client(kit.message(source), kit.context())
    assert seen == {"epochs": 1, "logger": None}


def test_submit_reaches_the_bridge(kit, source):
    client = client_app(kit.Lit, lambda _: kit.loader(), {"max_epochs": 2, **DEVICE}, submit="mean")
    bridge = kit.fit  # the reference: a mean over both epochs, by hand
    epochs = []

    class Records(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            epochs.append(pl_module.layer.weight.detach().double().clone())

    module = kit.fresh_module(1)
    bridge(Records(), module=module, max_epochs=2)
    expected = torch.stack(epochs).mean(0).float().numpy()
    got = weights(client(kit.message(source), kit.context()))["layer.weight"]
    np.testing.assert_array_equal(got, expected)


def test_bad_options_are_refused_when_the_app_is_made(kit):
    with pytest.raises(ValueError, match=r"`num_threads` must be at least 1\. Got 0"):
        client_app(kit.Lit, lambda _: kit.loader(), num_threads=0)
    with pytest.raises(ValueError, match="`submit` must be"):
        client_app(kit.Lit, lambda _: kit.loader(), submit="first")
    with pytest.raises(ValueError, match="pass `monitor=`"):
        client_app(kit.Lit, lambda _: kit.loader(), submit="best")


def test_an_app_that_no_other_process_can_import_is_named(kit, source):
    client = client_app(
        kit.Lit, lambda _: kit.loader(), {"accelerator": "cpu", "devices": 2, "strategy": "ddp"}
    )
    with pytest.raises(LightningFLError, match=r"no module holds it.*top level of a file"):
        client(kit.message(source), kit.context())


def test_a_strategy_that_would_start_the_engine_again_is_refused_in_this_process(kit, source):
    trainer = {"accelerator": "cpu", "devices": 2, "strategy": "ddp"}
    client = client_app(kit.Lit, lambda _: kit.loader(), trainer, launcher=None)
    with pytest.raises(ValueError, match="whose `launcher` starts processes for the fit alone"):
        client(kit.message(source), kit.context())


def test_a_client_that_raises_answers_with_an_error_and_others_go_on(kit, source):
    def data(context):
        if context.node_config["partition-id"] == 1:
            return DataLoader([1.0, 2.0], batch_size=1)
        return kit.loader()

    grid = LocalGrid(client_app(kit.Lit, data, DEVICE), num_clients=3)
    messages = [kit.message(source, node_id=node) for node in grid.get_node_ids()]
    assert [reply.has_error() for reply in grid.send_and_receive(messages)] == [False, True, False]


def test_weights_of_plain_flower_are_understood(kit):
    module = kit.fresh_module(1)
    client = client_app(kit.Lit, lambda _: kit.loader(), DEVICE)
    ours = client(kit.message(kit.arrays_of(module)), kit.context())
    theirs = client(kit.message(ArrayRecord(module.state_dict())), kit.context())
    kit.assert_same(weights(ours), weights(theirs))
    state = ours.content["arrays"].to_torch_state_dict()
    assert [tuple(t.shape) for t in state.values()] == [tuple(t.shape) for t in module.state_dict().values()]


@pytest.mark.parametrize("value", ["2", 2.5])
def test_a_round_that_is_no_integer_is_refused(kit, source, value):
    message = kit.message(source)
    message.content["config"]["server-round"] = value
    with pytest.raises(LightningFLError, match=f"`server-round`: expected a whole number .*, got {value!r}"):
        client_app(kit.Lit, lambda _: kit.loader(), DEVICE)(message, kit.context())


def test_a_message_without_a_config_is_round_0_of_run_0(kit, source):
    message = kit.message(source)
    del message.content["config"]
    reply = client_app(kit.Lit, lambda _: kit.loader(), DEVICE)(message, kit.context())
    assert reply.content["client"]["server-round"] == 0


def test_the_seed_of_a_fit_is_the_documented_one(kit, source):
    seen = []

    class Draws(kit.Lit):
        def on_fit_start(self):
            seen.append(torch.initial_seed())

    client = client_app(Draws, lambda _: kit.loader(), DEVICE)
    client(kit.message(to_record(source), server_round=2, run_seed=7), kit.context(4, of=12))
    assert seen == [derive_seed(7, 2, "04", "train")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            (L.LightningModule(), lambda context: None),
            "`model` must make .* Got an instance of",
        ),
        ((L.LightningModule, []), r"`data` must be a function .* Got an instance of list"),
        ((L.LightningModule, lambda context: None, ["max_epochs"]), "`trainer` must be a dict"),
        ((L.LightningModule, lambda context: None, {"max_epoch": 1}), r"holds \['max_epoch'\]"),
        (
            (L.LightningModule, lambda context: None, {"callbacks": "[EarlyStopping()]"}),
            r"`callbacks` that are none: \['str'\].*`configure_callbacks`",
        ),
    ],
)
def test_wrong_arguments_are_refused_when_the_app_is_made(arguments, message):
    with pytest.raises(TypeError, match=message):
        client_app(*arguments)


@pytest.mark.parametrize("kind", ["train", "evaluate"])
@pytest.mark.parametrize(
    "wrong",
    [
        lambda kit: None,
        lambda kit: kit.dataset(),
        lambda kit: (kit.loader(), kit.loader()),
        lambda kit: {"train": kit.loader()},
        lambda kit: torch.ones(3, 3),
        lambda kit: 3,
    ],
    ids=["None", "dataset", "tuple", "dict", "tensor", "int"],
)
def test_data_that_is_no_loader_is_refused_at_once(kit, source, wrong, kind):
    given = wrong(kit)
    what = "None" if given is None else f"an instance of {type(given).__name__}"
    client = client_app(kit.Validated, lambda _: given, DEVICE)
    with pytest.raises(
        TypeError, match=f"`data` must return a LightningDataModule or a DataLoader. Got {what}"
    ):
        client(kit.message(source, kind), kit.context())


def test_a_loader_of_another_kind_is_a_loader(kit, source):
    class Batches:
        def __iter__(self):
            return iter(kit.loader())

    for data in (Batches(), CombinedLoader(kit.loader())):
        reply = client_app(kit.Lit, lambda _, data=data: data, DEVICE)(kit.message(source), kit.context())
        assert reply.content["metrics"]["num-examples"] == 10
