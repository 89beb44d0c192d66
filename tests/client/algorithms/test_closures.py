"""Optimizers that evaluate the loss several times in a step."""

import numpy as np
import pytest
import torch
from _quadratic import Quadratic, app, run, weights

from lightning_fl_ext import ExactFedAvg, FedDyn, FedProx, LightningFLError, Scaffold

MU = 0.3


class Searching(Quadratic):
    def __init__(self, mu=0.0, search=None):
        super().__init__()
        self.mu, self.search = mu, search

    def on_fit_start(self):
        self.near = torch.cat([self.head, self.tail]).detach().clone()

    def loss(self, batch):
        moved = torch.cat([self.head, self.tail]) - self.near
        return super().loss(batch) + self.mu / 2 * moved.square().sum()

    def configure_optimizers(self):
        return torch.optim.LBFGS(self.parameters(), 0.1, max_iter=3, line_search_fn=self.search)


def test_the_pull_in_each_evaluation_is_that_of_the_term_in_the_loss():
    def federate(strategy, mu):
        return weights(run(strategy, app(lambda: Searching(mu)), rounds=2, model=Searching))

    pulled = federate(FedProx(MU), 0.0)
    np.testing.assert_allclose(pulled, federate(ExactFedAvg(), MU), rtol=1e-9)
    assert np.abs(pulled - federate(ExactFedAvg(), 0.0)).max() > 1e-2


@pytest.mark.parametrize("make", [lambda: FedProx(MU), Scaffold, lambda: FedDyn(MU)])
def test_a_search_by_a_loss_that_the_algorithm_is_no_part_of_is_refused(make, tmp_path):
    client = app(lambda: Searching(search="strong_wolfe"), keep_local=tmp_path)
    with pytest.raises(
        LightningFLError, match="`LBFGS` searches by the loss, which the change is no part of"
    ):
        run(make(), client, rounds=1, model=Searching)
