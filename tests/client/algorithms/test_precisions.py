"""Algorithms in half precision, and over several processes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from _scripts import run_script
from lightning.pytorch.plugins.precision import MixedPrecision

from lightning_fl_ext import ClientAlgorithm, ExactFedAvg, FederatedTrainer, LocalGrid, Scaffold, client_app
from lightning_fl_ext.client.algorithms.hooks import AlgorithmHooks

RANKS = Path(__file__).parents[1] / "_ranks_of_algorithms.py"


class Counting(ClientAlgorithm):
    name = "counting"

    def on_fit_start(self, fit):
        self.steps, self.dtypes = 0, set()

    def before_step(self, fit, parameters, optimizer):
        self.steps += 1
        self.dtypes |= {parameter.grad.dtype for parameter in parameters.values()}


def test_a_step_that_the_scaler_skips_counts_for_none(kit):
    class Overflows(kit.Lit):
        def loss(self, batch):
            loss = super().loss(batch)
            return loss * float("inf") if len(self.sizes) == 1 else loss

    half = Counting({})
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)  # no other step overflows
    plugin = MixedPrecision("16-mixed", "cpu", scaler)
    kit.fit(AlgorithmHooks(half), module=Overflows(), data=kit.loader(16, batch_size=4), plugins=[plugin])
    assert (half.steps, half.dtypes) == (3, {torch.float32})


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_scaffold_s_controls_are_no_narrower_than_float32(precision, kit, tmp_path):
    trainer = {"accelerator": "cpu", "devices": 1, "precision": precision}
    client = client_app(kit.Lit, lambda _: kit.loader(16, batch_size=4), trainer, keep_local=tmp_path)

    def federate(strategy):
        server = FederatedTrainer(2, strategy, enable_progress_bar=False)
        server.fit(kit.Lit, LocalGrid(client, num_clients=3))
        return server

    corrected = federate(Scaffold(fraction_evaluate=0.0))
    assert [len(record.accepted) for record in corrected.rounds] == [3, 3]
    assert {control.dtype for control in corrected.strategy.kept.values()} == {np.dtype(np.float32)}
    # Clients with the same data do not drift: there is nothing to correct but rounding.
    plain = federate(ExactFedAvg(fraction_evaluate=0.0))
    for name, array in plain.arrays.items():
        np.testing.assert_allclose(corrected.arrays[name], array, rtol=2e-2, atol=2e-2, err_msg=name)


def test_an_algorithm_over_two_ranks_is_that_of_one_with_both_batches():
    algorithms = ("scaffold", "fednova", "fedprox", "feddyn")
    told = run_script(RANKS, "plain one", *(f"{a} {ranks}" for a in algorithms for ranks in ("one", "fork")))
    for name in algorithms:
        one = told[f"{name} one"]
        np.testing.assert_allclose(told[f"{name} fork"], one, rtol=1e-9, err_msg=name)
        assert name == "fednova" or one != told["plain one"]  # whose clients take as many steps each here


def test_own_models_over_two_ranks_are_those_of_one_with_both_batches():
    ways = "ditto one", "ditto fork", "fedrep one_head", "fedrep fork_head"
    told = run_script(RANKS, *ways)
    for one, fork in (ways[:2], ways[2:]):
        np.testing.assert_allclose(told[fork], told[one], rtol=1e-6, err_msg=one)  # losses are in float32


@pytest.mark.slow
@pytest.mark.parametrize(
    ("algorithm", "app"), [("scaffold", "ddp"), ("feddyn", "ddp_in_context"), ("ditto", "ddp")]
)
def test_what_an_algorithm_keeps_reaches_processes_of_the_launcher(algorithm, app):
    launched, fork, one = (f"{algorithm} {name}" for name in (app, "fork", "one"))
    told = run_script(RANKS, launched, fork, one)
    assert told[launched] == told[fork]
    np.testing.assert_allclose(told[fork], told[one], rtol=1e-6 if algorithm == "ditto" else 1e-9)
