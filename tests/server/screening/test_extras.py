"""What an algorithm makes of a client's weights is bounded as the weights are."""

import numpy as np
import pytest

from lightning_fl_ext import FedNova
from lightning_fl_ext.server import Reason


def answer(normalizer, size):
    """Clients of FedNova, of which client 1 sends a weight and a normalizer of its own."""

    def fit(arrays, partition, server_round):
        own, size_now = (normalizer, size) if partition == 1 else (10.0, 0.5)
        weights = {name: np.full_like(array, size_now) for name, array in arrays.items()}
        return {**weights, "algorithm/normalizer": np.array(own)}

    return fit


@pytest.mark.parametrize("size", [5e10, -5e10])
def test_a_change_that_is_large_only_per_step_leaves_its_client_out(toy, size):
    trainer = toy.make_trainer(FedNova())
    grid = toy.make_grid(3, toy.make_app(fit=answer(1e-6, size)))
    result = trainer.fit(toy.Net(), grid)
    assert [record.accepted for record in result.rounds] == [("00", "02")] * 2
    assert {(r.client_id, r.reason) for r in result.rejected} == {("01", Reason.MAGNITUDE)}
    for value in result.model.state_dict().values():
        np.testing.assert_allclose(value.numpy(), 0.5, rtol=1e-6)
