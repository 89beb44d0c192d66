"""A client in two real processes (gloo on CPU) next to one in a single process."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_fl_ext.metrics import MetricPack, merge_metrics, pack_metrics
from lightning_fl_ext.metrics.ranks import updates_of_all_ranks

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def worker():
    spec = importlib.util.spec_from_file_location("_ranks_worker", HERE / "_ranks_worker.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the two processes left behind."""
    folder = tmp_path_factory.mktemp("ranks")
    path = os.pathsep.join(map(str, (HERE.parents[1], HERE)))
    environment = os.environ | {"PYTHONPATH": path, "GLOO_SOCKET_IFNAME": "lo"}
    program = "import sys, _ranks_worker; _ranks_worker.main(int(sys.argv[1]), sys.argv[2])"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(rank), str(folder)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=120)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)
    return folder


@pytest.fixture(scope="module")
def pack(folder):
    with np.load(folder / "arrays.npz") as arrays:
        return MetricPack.from_arrays(dict(arrays), (folder / "header.json").read_text(), client_id="ddp")


def test_updates_are_counted_over_both_processes(pack):
    counts = {name: metric.updates for name, metric in pack.metrics.items()}
    assert counts["val.MulticlassAccuracy"] == counts["val.MulticlassF1Score"] == 4
    assert (counts["seldom"], counts["idle"]) == (1, 0)


def test_states_with_the_reduction_none_keep_each_process(pack):
    assert pack.metrics["pearson"].states["mean_x"].shape == (2, 1)


def test_two_processes_and_a_second_client_give_the_pooled_values(pack, worker, assert_same):
    other, pooled = worker.module(), worker.module()
    worker.feed(other, 5)
    for batch in (0, 2, 1, 3):  # rank 0 first, as torchmetrics gathers
        worker.feed(pooled, batch)
    worker.feed(pooled, 5)
    packs = [pack, pack_metrics(other, client_id="single", allow_example_states=worker.ROWS)]
    merged = merge_metrics(worker.module(), packs)
    for name in ("val", "auroc", "seldom"):
        assert_same(merged[name].compute(), pooled[name].compute())
    assert_same(merged["pearson"].compute(), pooled["pearson"].compute(), 1e-6)
    assert torch.equal(merged["growing"].rows, pooled["growing"].rows)
    assert not merged["idle"].update_called


def test_the_processes_of_one_client_share_their_queries(pack, worker):
    pooled = worker.module()
    for batch in range(4):
        worker.feed(pooled, batch)
    merged = merge_metrics(worker.module(), [pack])
    assert merged["map"].compute() == pytest.approx(float(pooled["map"].compute()))


@pytest.mark.parametrize("rank", [0, 1])
def test_what_would_hang_or_fail_is_refused_in_both_processes(folder, rank):
    messages = (folder / f"refused-{rank}.txt").read_text().splitlines()
    expected = [
        "(RetrievalMAP): the processes of this client hold [1, 2] entries of `indexes`",
        "(CatMetric): the processes of this client hold [1, 0] entries of `value`",
        "(ExplainedVariance): the processes of this client hold states of different shapes",
    ]
    assert len(messages) == len(expected)
    for message, start in zip(messages, expected, strict=True):
        assert start in message
        assert "`devices=1`" in message


def test_a_module_without_metrics_has_nothing_to_gather():
    assert updates_of_all_ranks({}) == {}
