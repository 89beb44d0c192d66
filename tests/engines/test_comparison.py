"""One app on every engine."""

import pytest
from _comparison import REFERENCE, compare

STRATEGIES = ("ExactFedAvg", "FedAdam", "FedPM", "Scaffold", "SecureFedAvg")
"""Those of which either half keeps something, or takes more than one message; ``make engines`` runs all."""


@pytest.mark.engines
def test_every_engine_gives_the_same_model_and_the_same_ledger(tmp_path):
    outcomes = compare(tmp_path, strategies=STRATEGIES)
    assert len(outcomes) == 4
    for strategy in STRATEGIES:
        digests = {engine: outcome.digests[strategy] for engine, outcome in outcomes.items()}
        assert len(set(digests.values())) == 1, (strategy, digests)
        # Who was sampled, each client's update, its metrics, and the model after each round.
        assert len({outcome.ledger(strategy) for outcome in outcomes.values()}) == 1, strategy
        if strategy == "SecureFedAvg":  # whose clients' secrets outlive the process of a message
            assert digests == {engine: outcome.digests["ExactFedAvg"] for engine, outcome in outcomes.items()}
            continue
        assert b'"train_f1"' in outcomes[REFERENCE].ledger(strategy), "pooled from the clients' states"
