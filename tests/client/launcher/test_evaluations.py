"""Evaluations over processes that do not divide the examples: every example counts once."""

from functools import partial
from math import ceil
from pathlib import Path
from types import SimpleNamespace

import pytest
from _scripts import run_script
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler

from lightning_fl_ext.client.bridge.batch_size import items_drawn
from lightning_fl_ext.client.bridge.unrepeated import UnrepeatedBatches, _drop_repeats

run = partial(run_script, Path(__file__).with_name("_evaluations.py"))
counts = st.integers(1, 60)


def batches_of_ranks(examples, ranks, batch_size, drop_last=False):
    samplers = [DistributedSampler(range(examples), ranks, rank, seed=3) for rank in range(ranks)]
    return [UnrepeatedBatches(BatchSampler(sampler, batch_size, drop_last)) for sampler in samplers]


@given(counts, st.integers(1, 5), st.integers(1, 12))
def test_ranks_share_all_examples_in_equally_many_batches(examples, ranks, batch_size):
    shared = []
    for batches in batches_of_ranks(examples, ranks, batch_size):
        drawn = list(batches)
        assert len(drawn) == len(batches) == ceil(ceil(examples / ranks) / batch_size)
        assert all(0 < len(batch) <= batch_size for batch in drawn)
        shared += [item for i, batch in enumerate(drawn) if not batches.is_repeat(i) for item in batch]
    assert sorted(shared) == list(range(examples))


@given(counts, st.integers(1, 5), st.integers(1, 12))
def test_whole_batches_alone_are_as_many_on_every_rank(examples, ranks, batch_size):
    drawn = [list(batches) for batches in batches_of_ranks(examples, ranks, batch_size, drop_last=True)]
    assert len({len(batches) for batches in drawn}) == 1
    items = [item for batches in drawn for batch in batches for item in batch]
    assert len(items) == len(set(items)) == examples // ranks // batch_size * batch_size * ranks


def test_a_loader_tells_how_many_it_draws():
    batches = batches_of_ranks(41, 2, 10)[1]
    loader = DataLoader(range(41), batch_sampler=batches)
    assert [items_drawn(loader, i) for i in range(3)] == [10, 9, 1]


def test_batches_that_cannot_be_mended_are_named(caplog):
    class Own(BatchSampler):
        pass

    loader = DataLoader(range(7), batch_sampler=Own(DistributedSampler(range(7), 2, 0), 2, False))
    _drop_repeats(loader, SimpleNamespace(is_global_zero=True))
    (record,) = caplog.records
    assert "repeats 1 of 7 examples" in record.message
    assert "with `Own` it cannot be helped" in record.message


@pytest.fixture(scope="module")
def forked():
    return run("ddp_fork")


def check(out):
    one, two = out["one"], out["two"]
    assert {"val_loss", "BinaryF1Score", "fit_BinaryAUROC", "test_loss", "test_f1"} <= one.keys()
    assert one["val_loss"] != one["fit_val_loss"]
    assert two == pytest.approx(one, rel=1e-6)


def test_metrics_of_clients_over_two_processes_are_those_over_one(forked):
    """Within a fit, in an evaluation and in the final test: metric objects, means and a maximum."""
    check(forked)


@pytest.mark.slow
def test_metrics_are_the_same_in_processes_of_the_launcher():
    check(run("ddp"))
