"""What a run has spent of its privacy budget is counted once, also if the run was stopped on the way."""

import math

import pytest
from flwr.serverapp import NeighboringRelation, PrivacyConfig, PrivacySpent, SamplingMethod
from flwr.serverapp.strategy import DifferentialPrivacyServerSideFixedClipping, FedAvg

from lightning_fl_ext import RoundCheckpoint
from lightning_fl_ext.errors import LightningFLError


class ZeroConcentrated:
    """An accountant for Gaussian noise (Bun and Steinke 2016, arXiv:1605.02065, propositions 1.3 and 1.6)."""

    def __init__(self, max_epsilon=None):
        self.config = PrivacyConfig(
            target_delta=1e-5,
            population_size=5,
            neighboring_relation=NeighboringRelation.ADD_OR_REMOVE_ONE,
            sampling_method=SamplingMethod.NO_AMPLIFICATION,
            max_epsilon=max_epsilon,
        )
        self.backend = math  # Flower's own holds modules, too
        self.rho, self.num_releases = 0.0, 0

    def compose(self, event, count=1):
        self.rho += count / (2 * event.noise_multiplier**2)
        self.num_releases += count

    def epsilon(self, rho):
        return rho + 2 * self.backend.sqrt(rho * -self.backend.log(self.config.target_delta))

    def get_privacy_spent(self, delta=None):
        return PrivacySpent(self.epsilon(self.rho), self.config.target_delta, self.num_releases, "zcdp")

    def would_exceed(self, event, max_epsilon=None, count=1):
        after = self.epsilon(self.rho + count / (2 * event.noise_multiplier**2))
        return after > (max_epsilon or self.config.max_epsilon)

    def state_dict(self):
        return {"rho": self.rho, "releases": self.num_releases, "max_epsilon": self.config.max_epsilon}

    def load_state_dict(self, state):
        if state["max_epsilon"] != self.config.max_epsilon:
            raise ValueError("the budget is another")
        self.rho, self.num_releases = state["rho"], state["releases"]


def fit(toy, folder, rounds, *, max_epsilon=None, faults=None):
    accountant = ZeroConcentrated(max_epsilon)
    result, strategy = fit_with(accountant, toy, folder, rounds, faults)
    assert accountant.num_releases == 0  # each fit starts with a copy
    return result, strategy.privacy_spent()


def fit_with(accountant, toy, folder, rounds, faults=None):
    inner = FedAvg(weighted_by_key="one")  # an accountant asks for equal weights
    strategy = DifferentialPrivacyServerSideFixedClipping(inner, 2.0, 0.5, 5, accountant=accountant)
    trainer = toy.make_trainer(
        strategy, max_rounds=rounds, callbacks=RoundCheckpoint(), default_root_dir=folder
    )
    grid = toy.make_grid(5, toy.make_app(extra={"one": 1}), faults=faults)
    result = trainer.fit(toy.Net(), grid, ckpt_path="last")
    return result, trainer.strategy


def test_a_resumed_run_goes_on_with_what_it_had_spent(toy, tmp_path):
    whole, spent = fit(toy, tmp_path / "whole", 3)
    assert spent.num_releases == 3
    fit(toy, tmp_path / "stopped", 2)
    resumed, spent_in_all = fit(toy, tmp_path / "stopped", 3)
    assert resumed.digest == whole.digest
    assert spent_in_all == spent


def test_a_void_round_spends_nothing(toy, tmp_path):
    def vanish(instruction, reply):
        second = toy.is_train(instruction) and instruction.content["config"]["server-round"] == 2
        return None if second else reply

    result, spent = fit(toy, tmp_path, 3, faults=vanish)
    assert [record.void for record in result.rounds] == [False, True, False]
    assert spent.num_releases == 2
    _, spent_in_all = fit(toy, tmp_path, 4)
    assert spent_in_all.num_releases == 3


def test_going_on_with_another_budget_is_refused(toy, tmp_path):
    fit(toy, tmp_path, 1)
    with pytest.raises(
        LightningFLError, match=r"`\w+FixedClipping.accountant` does not take.*the budget is another"
    ):
        fit(toy, tmp_path, 2, max_epsilon=90.0)


@pytest.mark.parametrize(
    ("then", "now", "holds"),
    [
        (None, ZeroConcentrated(), "an instance of ZeroConcentrated, and the checkpoint holds a plain value"),
        (ZeroConcentrated(), None, "an instance of NoneType, and the checkpoint holds an object's state"),
    ],
    ids=["only now", "only then"],
)
def test_going_on_is_refused_where_only_one_of_the_runs_has_an_accountant(toy, tmp_path, then, now, holds):
    fit_with(then, toy, tmp_path, 1)
    with pytest.raises(LightningFLError, match=rf"`\w+FixedClipping.accountant` does not take.*{holds}"):
        fit_with(now, toy, tmp_path, 2)


def test_a_spent_budget_ends_the_run_with_the_rounds_before_intact(toy, tmp_path):
    with pytest.raises(LightningFLError, match="configure_train failed in round 3: PrivacyBudgetExhausted"):
        fit(toy, tmp_path, 9, max_epsilon=4.0)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "round-00001",
        "round-00002",
    ]
