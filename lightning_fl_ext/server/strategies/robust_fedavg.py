"""`RobustFedAvg`: federated averaging that a few bad clients cannot lead where they like."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid

from lightning_fl_ext.aggregation.robust import RobustRule
from lightning_fl_ext.arguments import got
from lightning_fl_ext.server.strategies.exact_fedavg import ExactFedAvg, aggregate_summaries
from lightning_fl_ext.wire import to_record

log = logging.getLogger(__name__)

LARGEST = 2.0**480
"""Magnitude from which the squares of a model's numbers could overflow."""


class RobustFedAvg(ExactFedAvg):
    """FedAvg with a robust rule in the place of the mean.

    The result does not depend on the order of arrival. Every update has one vote: the example counts, which
    are the clients' own word, weigh metrics alone. All updates of a round are in memory at once.

    A round in which too few updates are left for the rule is void, and the model stays.

    Args:
        rule: Such as ``TrimmedMean(0.2)``. How many bad clients it takes is counted among those **asked**.
        **options: Arguments of Flower's ``FedAvg``, such as ``fraction_train``.

    Raises:
        TypeError: ``rule`` is none.

    Example:
        >>> from lightning_fl_ext import TrimmedMean
        >>> RobustFedAvg(TrimmedMean(0.2), fraction_train=0.5).rule_settings
        'TrimmedMean(fraction=0.2)'
    """

    def __init__(self, rule: RobustRule, **options: Any) -> None:
        if not isinstance(rule, RobustRule):
            raise TypeError(f"`rule` must be a robust rule, such as `CoordinateMedian()`.{got(rule)}")
        super().__init__(**options)
        self.rule = rule
        self.rule_settings = repr(rule)  # a string, so that a run with another rule does not go on from it
        self._asked = 0

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Configure as FedAvg does, and see that the rule makes sense for as many clients.

        Raises:
            LightningFLError: It does not.
        """
        messages = list(super().configure_train(server_round, arrays, config, grid))
        if messages:
            self.rule.least(len(messages))
        self._asked = len(messages)
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Apply the rule to all replies; give nothing if they are too few for it.

        Raises:
            InvalidUpdate: A reply does not fit the model; under ``FederatedTrainer`` screening comes first.
        """
        summaries: list[RecordDict] = []
        updates = [arrays for arrays, _ in self._updates(replies, summaries)]
        (like, self._like), (asked, self._asked) = (self._like, None), (self._asked or len(updates), 0)
        if not updates:
            return None, None
        if len(updates) < (least := self.rule.least(asked)):
            log.warning(
                "round %d is void: %s needs %d updates of %d clients asked, and has %d",
                *(server_round, self.rule_settings, least, asked, len(updates)),
            )
            return None, None
        new = self.rule(like or updates[0], updates, asked)
        return to_record(new), aggregate_summaries(
            summaries, self.train_metrics_aggr_fn, self.weighted_by_key
        )

    @staticmethod
    def max_term(num_clients: int) -> float:
        """Largest magnitude of a weight times its count: of more, distances could not be told."""
        return LARGEST
