"""The engine in this process under Flower's own server side."""

import numpy as np
import pytest
from _small_clients import answer, ask, client_app, who
from flwr.app import Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

from lightning_fl_ext import LightningFLError
from lightning_fl_ext.engines import LocalGrid, local, run_local
from lightning_fl_ext.wire import from_record, to_record

SHARES = [1, 2, 3, 4, 10]


@client_app
def step(message, context):
    """Add the partition number to every weight."""
    partition = context.node_config["partition-id"]
    arrays = from_record(message.content["arrays"])
    trained = {name: array + np.float32(partition) for name, array in arrays.items()}
    metrics = MetricRecord({"num-examples": SHARES[partition], "loss": float(partition)})
    return Message(RecordDict({"arrays": to_record(trained), "metrics": metrics}), reply_to=message)


def federate(rounds, **options):
    server = ServerApp()
    results = []

    @server.main()
    def main(grid, context):
        strategy = FedAvg(fraction_evaluate=0.0)
        initial = to_record({"w": np.zeros((2, 2), np.float32)})
        results.append(strategy.start(grid=grid, initial_arrays=initial, num_rounds=rounds))

    run_local(server, step, len(SHARES), **options)
    return results[0]


def test_plain_fedavg_runs_through_it_and_gives_the_weighted_mean():
    result = federate(rounds=3)
    drift = np.average(range(len(SHARES)), weights=SHARES)
    np.testing.assert_allclose(from_record(result.arrays)["w"], np.full((2, 2), 3 * drift), rtol=1e-6)
    assert result.train_metrics_clientapp[3]["loss"] == pytest.approx(drift)


def test_plain_fedavg_leaves_out_vanished_and_failed_clients():
    def last_vanishes(instruction, reply):
        return None if reply.content["metrics"]["loss"] == 4.0 else reply

    result = federate(rounds=1, faults=last_vanishes)
    expected = np.average(range(4), weights=SHARES[:4])
    np.testing.assert_allclose(from_record(result.arrays)["w"], np.full((2, 2), expected), rtol=1e-6)


def test_run_local_gives_the_run_config_to_both_sides_and_returns_the_servers_context():
    server = ServerApp()

    @client_app
    def echo(message, context):
        return answer(message, lr=context.run_config["lr"])

    @server.main()
    def main(grid, context):
        context.state["seen"] = MetricRecord({"lr": ask(grid, "lr"), "own": context.run_config["lr"]})

    context = run_local(server, echo, 2, run_config={"lr": 0.25}, arrival=lambda batch: batch[::-1])
    assert dict(context.state["seen"]) == {"lr": [0.25, 0.25], "own": 0.25}


def test_messages_made_by_the_grid_and_the_run_it_is_given():
    grid = LocalGrid(who, 1)
    (node_id,) = grid.get_node_ids()
    (reply,) = grid.send_and_receive([grid.create_message(RecordDict(), "train", node_id, "group")])
    assert reply.metadata.group_id == "group"
    run = grid.run
    grid.set_run(run)
    assert grid.run is run


def test_swapped_apps_are_refused_by_type():
    with pytest.raises(TypeError, match="Got ClientApp and ServerApp"):
        run_local(ClientApp(), ServerApp(), 2)


def test_where_no_federation_may_run_none_begins(monkeypatch):
    """Neither by `run_local`, nor by hand on a grid that was made before."""
    began, server = [], ServerApp()
    server.main()(lambda grid, context: began.append(grid))
    grid = LocalGrid(ClientApp(), num_clients=1)
    monkeypatch.setattr(local, "_forbidden", "")
    local.forbid_federations("not here")
    with pytest.raises(LightningFLError, match="not here"):
        run_local(server, ClientApp(), num_clients=1)
    with pytest.raises(LightningFLError, match="not here"):
        grid.send_and_receive([Message(RecordDict(), node, "query") for node in grid.get_node_ids()])
    assert not began
