"""`RobustFedAvg`: federated averaging that a few bad clients cannot lead where they like."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid

from lightning_fl_ext.aggregation.robust import RobustRule
from lightning_fl_ext.arguments import got
from lightning_fl_ext.errors import LightningFLError
from lightning_fl_ext.server.strategies.exact_fedavg import ExactFedAvg, aggregate_summaries
from lightning_fl_ext.wire import to_record

log = logging.getLogger(__name__)

LARGEST = 2.0**480
"""Magnitude from which the squares of a model's numbers could overflow."""

_FAR = 10_000
"""How many clients more than are connected are looked at for the least number that a rule takes."""


class RobustFedAvg(ExactFedAvg):
    """FedAvg with a robust rule in the place of the mean.

    The result does not depend on the order of arrival. Every update has one vote: the example counts, which
    are the clients' own word, weigh metrics alone. All updates of a round are in memory at once.

    A run begins when as many clients are connected as the rule takes of those that are asked. A round in
    which too few are asked, or too few updates are left, is void, and the model stays.

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
        """Configure as FedAvg does; in the first round, see that the rule makes sense for as many clients.

        Raises:
            LightningFLError: It does not.
        """
        messages = list(super().configure_train(server_round, arrays, config, grid))
        if messages and server_round == 1:
            self.rule.least(len(messages))
        self._asked = len(messages)
        return messages

    def least_connected(self, connected: int) -> tuple[int, str, str]:
        """Say how many clients have to be connected for the rule to make sense for those asked of them.

        A subclass that chooses otherwise whom to ask has a word of its own here.

        Args:
            connected: How many are.

        Returns:
            As many or more, who says so, and what else to do than to connect them; 0 if no number will do.

        Example:
            >>> from lightning_fl_ext import TrimmedMean
            >>> RobustFedAvg(TrimmedMean(0.3), fraction_train=0.5).least_connected(5)[:2]
            (8, 'TrimmedMean(fraction=0.3), which takes 4 asked to train (`fraction_train=0.5` asks 4 of 8)')
        """
        for number in range(connected, connected + _FAR if self.fraction_train else 0):
            asked = self._asked_of(number)
            if number >= asked and not self.why_no_model(asked, asked):
                says, remedy = f"{self.rule_settings}, which takes {asked} asked to train", ""
                if asked < number:
                    says += f" (`fraction_train={self.fraction_train}` asks {asked} of {number})"
                    remedy = f"have more of them asked (`min_train_nodes={asked}`), "
                now = self._asked_of(connected)
                return number, says, f"{remedy}or change the rule: {self.why_no_model(now, now)}"
        return 0, "", ""

    def _asked_of(self, connected: int) -> int:
        return max(int(connected * self.fraction_train), self.min_train_nodes)

    def why_no_model(self, asked: int, counted: int) -> str:
        """Say why the rule makes no model of a round's updates; nothing if it does.

        Example:
            >>> from lightning_fl_ext import TrimmedMean
            >>> RobustFedAvg(TrimmedMean(0.3)).why_no_model(asked=7, counted=4)
            'TrimmedMean(fraction=0.3) needs 5 of 7 clients asked'
        """
        try:
            least = self.rule.least(asked)
        except LightningFLError as error:
            return str(error).rstrip(".")
        return f"{self.rule_settings} needs {least} of {asked} clients asked" if counted < least else ""

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Apply the rule to all replies; give nothing, and say why, if they are too few for it.

        Raises:
            InvalidUpdate: A reply does not fit the model; under ``FederatedTrainer`` screening comes first.
        """
        summaries: list[RecordDict] = []
        updates = [arrays for arrays, _ in self._updates(replies, summaries)]
        (like, self._like), (asked, self._asked) = (self._like, None), (self._asked or len(updates), 0)
        if not updates:
            return None, None
        if why := self.why_no_model(asked, len(updates)):
            told = (server_round, len(updates), asked, why)
            log.warning("round %d is void: %d of %d updates count, but %s", *told)
            return None, None
        new = self.rule(like or updates[0], updates, asked)
        return to_record(new), aggregate_summaries(
            summaries, self.train_metrics_aggr_fn, self.weighted_by_key
        )

    @staticmethod
    def max_term(num_clients: int) -> float:
        """Largest magnitude of a weight times its count: of more, distances could not be told."""
        return LARGEST
