"""Fits over two processes: what rank 0 found reaches the process that asked for it, and nothing else does.

Each test runs a script, since workers must be able to import what they run.
"""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from _scripts import run_script
from torch.utils.data import DistributedSampler

from lightning_fl_ext.seeds import derive_seed

run = partial(run_script, Path(__file__).with_name("_processes.py"))


def reference(n, epochs=2, ranks=2, seed=0):
    """The same fit in one plain loop: batches of 10 on each rank, gradients averaged over the ranks."""
    x = torch.randn(n, 3, generator=torch.Generator().manual_seed(1))
    samplers = [
        DistributedSampler(x, ranks, rank, seed=seed) for rank in range(ranks)
    ]  # Lightning shuffles them
    layer = torch.nn.Linear(3, 1)
    torch.nn.init.constant_(layer.weight, 0.5)
    torch.nn.init.zeros_(layer.bias)
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    for epoch in range(epochs):
        for sampler in samplers:
            sampler.set_epoch(epoch)
        for batches in zip(*(x[list(sampler)].split(10) for sampler in samplers), strict=True):
            optimizer.zero_grad()
            sum((layer(b) - b.sum(1, keepdim=True)).square().mean() / ranks for b in batches).backward()
            optimizer.step()
    return layer


def assert_trained_as(layer, weights):
    np.testing.assert_allclose(weights["layer.weight"], layer.weight.detach().ravel(), rtol=1e-5)
    np.testing.assert_allclose(weights["layer.bias"], layer.bias.detach(), rtol=1e-5)


def check_fit(out):
    fit = out["fit"]
    assert [(epoch, count) for epoch, count, _ in fit["epochs"]] == [(0, 101), (1, 101)]
    assert fit["seen"] == 202
    assert fit["metrics"] == ["loss"]
    assert fit["update"] == fit["epochs"][-1][2] == out["module"] == out["reply"]
    assert_trained_as(reference(101), fit["weights"])
    assert out["folder_mode"] == "0o700"
    assert out["epochs_after_failure"] == [0]
    assert "client `a` has no update: `Trainer.fit` raised ProcessRaisedException" in out["refused"]
    assert out["refused"].endswith("Complete epochs in `results`: 1, the last of which is epoch 0.")
    assert not out["folder_left"]


@pytest.fixture(scope="module")
def forked():
    return run("ddp_fork", "fit", "validate", "spool", "app", "masks", "keeps")


def test_results_come_back_from_forked_workers(forked):
    check_fit(forked["fit"])


def test_an_evaluation_in_workers_comes_back_and_leaves_the_update(forked):
    assert forked["validate"] == {"counts": [51, 20], "metrics": ["val_loss"], "update_kept": True}


def test_a_spool_filled_by_workers_stays(forked):
    spool = forked["spool"]
    assert spool["files"] == len(spool["fit"]["epochs"]) == 1
    assert spool["fit"]["update"] == spool["fit"]["epochs"][0][2], "the mean of one epoch is that epoch"


def test_a_client_app_over_forked_workers(forked):
    assert forked["app"]["counts"] == [101, 101]
    assert forked["app"]["metrics"] == ["num-examples", "val_loss"]
    shuffle = derive_seed(0, 1, "a", "train")
    assert_trained_as(reference(101, epochs=1, seed=shuffle), forked["app"]["weights"])


def test_a_theta_that_only_the_workers_could_read_is_kept_and_coded_by(forked):
    masks = forked["masks"]
    assert masks["held"] == masks["first"]
    assert masks["files"] == 1, "written by the client itself, of what a worker has read"
    assert masks["mask"] == len(masks["first"]) == 4


def test_an_optimizer_kept_by_forked_workers_goes_on(forked):
    """Over both processes, whose shuffles follow the count of epochs."""
    keeps = forked["keeps"]
    assert keeps["kept"] == keeps["lived_on"]
    assert keeps["differ"] == 3
    assert keeps["steps"] == [6, 6, 6]
    assert keeps["folders"] == ["round-00002", "round-00003"]
    assert keeps["noted"] == 3


def test_results_come_back_from_spawned_workers():
    check_fit(run("ddp_spawn", "fit")["fit"])


@pytest.fixture(scope="module")
def model_parallel():
    return run("model_parallel", "sharded", "replicated")


def test_sharded_weights_are_loaded_and_gathered(model_parallel):
    """FSDP2 over both processes; rank 0 holds the whole update."""
    out = model_parallel["sharded"]
    assert [(epoch, count) for epoch, count, _ in out["epochs"]] == [(0, 40), (1, 40)]
    assert_trained_as(reference(40), out["weights"])


def test_ranks_that_share_their_batches_count_them_once(model_parallel):
    """Tensor parallel ranks see the same two batches of ten."""
    assert [count for _, count, _ in model_parallel["replicated"]["epochs"]] == [20]
