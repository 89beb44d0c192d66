"""One app on every engine."""

import pytest
from _comparison import ENGINES, REFERENCE, compare

QUICK = ("Scaffold",)
"""Its server and its clients keep something between rounds."""


@pytest.mark.engines
@pytest.mark.parametrize(
    ("strategies", "left_out"),
    [(QUICK, {"Ray simulation, 2 actors"}), pytest.param((), set(), marks=pytest.mark.slow)],
    ids=["quick", "all"],
)
def test_every_engine_gives_the_same_model_and_the_same_ledger(tmp_path, strategies, left_out):
    engines = {name: run for name, run in ENGINES.items() if name not in left_out}
    outcomes = compare(tmp_path, strategies=strategies, engines=engines)
    assert list(outcomes) == list(engines)
    for strategy in outcomes[REFERENCE].digests:
        digests = {engine: outcome.digests[strategy] for engine, outcome in outcomes.items()}
        assert len(set(digests.values())) == 1, (strategy, digests)
        # Who was sampled, each client's update, its metrics, and the model after each round.
        assert len({outcome.ledger(strategy) for outcome in outcomes.values()}) == 1, strategy
        if strategy == "SecureFedAvg":  # whose clients' secrets outlive the process of a message
            assert digests == {engine: outcome.digests["ExactFedAvg"] for engine, outcome in outcomes.items()}
            continue
        assert b'"train_f1"' in outcomes[REFERENCE].ledger(strategy), "pooled from the clients' states"
