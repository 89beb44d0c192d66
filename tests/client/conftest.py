"""Small modules, data and Trainers, shared by the tests of the bridge."""

import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import lightning.pytorch as L
import numpy as np
import pytest
import torch
from _modules import QUIET, Lit, Validated, built_late
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from torch.utils.data import DataLoader, TensorDataset

from lightning_fl_ext import client_app
from lightning_fl_ext.engines.private import ensure_identity, set_message_id
from lightning_fl_ext.wire import from_record, to_record

sys.path.insert(0, str(Path(__file__).parent))  # tests import the modules beside them

from _sums import bridge_of, fit_sums  # noqa: F401


def dataset(n=10):
    rng = np.random.default_rng(0)
    return TensorDataset(
        torch.from_numpy(rng.normal(size=(n, 3)).astype(np.float32)),
        torch.from_numpy(rng.normal(size=(n, 1)).astype(np.float32)),
    )


def loader(n=10, batch_size=4, **options):
    return DataLoader(dataset(n), batch_size=batch_size, **options)


def trainer(*callbacks, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # advice on devices and on true-half precision
        return L.Trainer(**{**QUIET, "max_epochs": 1, "callbacks": list(callbacks), **options})


def fit(*callbacks, module=None, data=None, **options):
    module = Lit() if module is None else module
    trainer(*callbacks, **options).fit(module, loader() if data is None else data)
    return module


def arrays_of(module):
    """An independent reading of a module's state dict."""
    return {name: tensor.detach().cpu().numpy().copy() for name, tensor in module.state_dict().items()}


def assert_same(left, right):
    assert list(left) == list(right)
    for name in left:
        assert left[name].dtype == right[name].dtype, name
        np.testing.assert_array_equal(left[name], right[name], err_msg=name, strict=True)


def message(arrays=None, kind="train", server_round=1, run_seed=0, node_id=7):
    ensure_identity()
    content = {"config": ConfigRecord({"server-round": server_round, "run-seed": run_seed})}
    if arrays is not None:
        record = arrays if isinstance(arrays, ArrayRecord) else to_record(arrays)
        content = {"arrays": record, **content}
    made = Message(RecordDict(content), node_id, kind)
    set_message_id(made, f"{kind}-{server_round}")
    return made


def context(partition=0, of=1, **node_config):
    config = {"partition-id": partition, "num-partitions": of, **node_config}
    return Context(run_id=1, node_id=7, node_config=config, state=RecordDict(), run_config={})


def fresh_module(seed, make=Lit):
    """A module whose weights differ from those of every other seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make()


def weights(reply):
    assert reply.has_content(), reply.error
    return from_record(reply.content["arrays"])


def adam(module):
    return torch.optim.Adam(module.parameters(), 0.05)


@pytest.fixture
def globals_():
    """The global weights of four rounds."""
    return [arrays_of(fresh_module(seed)) for seed in range(4)]


@pytest.fixture
def ask(tmp_path):
    """Send a client that keeps its state a message; it is made anew each time, and only files live on."""

    def send(
        make, arrays, server_round, *, data=None, trainer=None, kind="train", run="r", to=None, **options
    ):
        sent = message(arrays, kind, server_round)
        sent.content["config"]["run-id"] = run
        trainer = {"accelerator": "cpu", "devices": 1, **(trainer or {})}
        options = {"keep_optimizer": tmp_path / "kept", **options}
        return client_app(make, data or (lambda _: loader()), trainer, **options)(sent, to or context())

    return send


@pytest.fixture
def kit():
    return SimpleNamespace(
        Lit=Lit,
        Validated=Validated,
        AdamLit=type("AdamLit", (Lit,), {"configure_optimizers": adam}),
        QUIET=QUIET,
        arrays_of=arrays_of,
        built_late=built_late,
        assert_same=assert_same,
        context=context,
        dataset=dataset,
        fit=fit,
        fresh_module=fresh_module,
        loader=loader,
        message=message,
        trainer=trainer,
        weights=weights,
    )
