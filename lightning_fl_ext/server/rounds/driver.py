"""Driving a Flower strategy through the two phases of a round."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from flwr.app import Message, MetricRecord
from flwr.serverapp import Grid

from lightning_fl_ext.engines import OrderedGrid
from lightning_fl_ext.errors import LightningFLError
from lightning_fl_ext.metric_names import ACROSS_SITES
from lightning_fl_ext.metrics.computed_values import copy_metrics
from lightning_fl_ext.metrics.discovery import named_metrics, require_known
from lightning_fl_ext.results import Arrays, ClientUpdate
from lightning_fl_ext.server.metrics.names import owned_by_server, told_by_half
from lightning_fl_ext.server.metrics.sites import across_sites, keep_sites
from lightning_fl_ext.server.record import RoundRecord
from lightning_fl_ext.server.rounds.clients import Clients
from lightning_fl_ext.server.rounds.fit_parts import FitParts
from lightning_fl_ext.server.rounds.flower_dtypes import align_replies, replied_to
from lightning_fl_ext.server.rounds.holdings import Holdings
from lightning_fl_ext.server.rounds.measuring import measure, seeing_most_of, shared_metrics, take_outcome
from lightning_fl_ext.server.rounds.privacy import warn_of_unclipped, warn_of_unequal_weights
from lightning_fl_ext.server.rounds.quorum import innermost, wait_for_clients
from lightning_fl_ext.server.rounds.refusals import (
    checked_weights,
    refuse_if_all_failed,
    refuse_if_too_few_are_asked,
    warn_of_unbounded_extras,
)
from lightning_fl_ext.server.rounds.sending import like_of, send
from lightning_fl_ext.server.rounds.strategy_calls import StrategyCalls
from lightning_fl_ext.server.screening.announcements import screen_announcement
from lightning_fl_ext.server.screening.checks import (
    screen_evaluate_reply,
    screen_train_reply,
)
from lightning_fl_ext.server.strategies.buffers import clips, name_buffers, own_buffers
from lightning_fl_ext.server.strategies.secure_round import SecureOutcome
from lightning_fl_ext.wire import from_record

if TYPE_CHECKING:
    from lightning_fl_ext.server.fit import FederatedFit


class StrategyDriver:
    """Takes a strategy through the rounds of one fit, as ``Strategy.start`` does.

    It hands out nodes and replies in the order of the clients' ids, and keeps what does not pass screening
    away from the strategy.

    Args:
        trainer: Its strategy, seed, limits and state.
        grid: What carries the messages.
        call_hook: Calls a hook of every callback, by name, with the hook's arguments after the trainer.

    Attributes:
        validated_in_fits: Names that at least half of the clients log in the validations of their fits, if
            the strategy asks clients to evaluate as well: the same names then mean the global model.
    """

    def __init__(self, trainer: FederatedFit, grid: Grid, call_hook: Callable[..., None]) -> None:
        self.trainer = trainer
        self.calls = StrategyCalls(trainer.strategy, trainer.seed)
        clients = Clients(grid, trainer.round_timeout, trainer.limits.name)
        self.grid = OrderedGrid(grid, clients.ordered)
        if trainer.exchange.coded and not self.calls.reads_coded:
            raise LightningFLError(
                f"{self.calls.name} cannot aggregate what {trainer.exchange!r} sends: use `FedPM`."
            )
        if trainer.site_metrics and self.calls.secure:
            raise LightningFLError(
                f"`site_metrics` needs each site's own values, which {self.calls.name} does not see: it sums"
                " them under the masks. Leave it out."
            )
        if self.calls.algorithm is not None:
            named = dict(trainer.model.named_parameters(remove_duplicate=False))
            self.calls.algorithm.parameters = [name for name in trainer.arrays if name in named]
            warn_of_unbounded_extras(self.calls.algorithm, trainer.max_update_norm)
        name_buffers(innermost(trainer.strategy), trainer.model, trainer.arrays)
        warn_of_unclipped(trainer.strategy, trainer.arrays)
        metrics = copy_metrics(trainer.model)
        try:
            require_known("average_metrics", trainer.average_metrics, named_metrics(metrics))
        except ValueError as error:
            raise LightningFLError(str(error)) from None
        names = {name for callback in trainer.callbacks for name in callback.metric_names}
        names |= {f"{name}/{what}" for name in trainer.site_metrics for what in ACROSS_SITES}
        self._parts = FitParts(
            trainer,
            self.calls,
            clients,
            self.grid,
            call_hook,
            Holdings(trainer.exchange, trainer.arrays),
            metrics,
            owned_by_server(names, except_for=(self.calls.count_key,)),
        )
        self.validated_in_fits: set[str] = set()
        self._unequal = False

    def train(self, server_round: int, arrays: Arrays) -> tuple[Arrays, RoundRecord]:
        """Have clients train, and aggregate what they send.

        Args:
            server_round: The current round, from 1.
            arrays: The global weights.

        Returns:
            The new global weights, which are the old ones if the round is void, and the round's record.

        Raises:
            NotEnoughClientsError: Too few clients are connected, or none answers.
            LightningFLError: The strategy fails, or makes weights that do not fit or are not finite.
        """
        least = self.trainer.min_accepted
        wait_for_clients(self.grid, self.trainer.strategy, self.trainer.round_timeout, least)
        screen = screen_announcement if self.calls.secure else screen_train_reply
        messages = send(self._parts, "train", server_round, arrays, screen)
        if not self._has_worked:
            refuse_if_too_few_are_asked(self.calls.name, messages, least)
        outcome: SecureOutcome | None = None
        if self.calls.secure or (self.calls.order_free and not messages.anonymous):
            summaries: dict[str, ClientUpdate] = {}
            new, metrics = self._aggregate(
                server_round, _without_arrays(messages.accepted(), summaries), summaries
            )
            if self.calls.secure:
                outcome, summaries, metrics = take_outcome(self._parts, messages, summaries, metrics)
        else:
            replies = messages.collect()
            summaries = {client: replace(update, arrays={}) for client, _, update in replies}
            new = metrics = None
            if len(replies) >= least:
                accepted = [reply for _, reply, _ in replies]
                like = like_of(self._parts, "train", self.trainer.exchange.like(arrays))
                strategy = self.trainer.strategy
                widen = partial(replied_to, strategy, arrays=arrays)
                updates = [update for _, _, update in replies]
                self._unequal = self._unequal or warn_of_unequal_weights(strategy, updates)
                buffers = own_buffers(strategy, self.trainer.model, arrays, updates)
                align_replies(accepted, shared_metrics(self._parts, summaries), like, widen)
                with seeing_most_of(self._parts, "train", replies, summaries):
                    new, metrics = self._aggregate(server_round, accepted, summaries)
                if new is not None and clips(strategy):
                    new = {name: array.reshape(arrays[name].shape) for name, array in new.items()}
                new = new and {**new, **buffers}
            elif self.calls.reserves:
                self._aggregate(server_round, [])  # releases nothing, so what it has reserved is free again
        if not (summaries or self._has_worked):
            refuse_if_all_failed(messages)
        void = bool(messages.outgoing) and (new is None or len(summaries) < least)
        self.calls.end_round(void)
        if new is not None and not void:
            before = arrays
            arrays = checked_weights(self.calls.name, server_round, new, arrays, summaries)
            self._parts.holdings.counted(server_round, before, arrays, summaries.keys(), messages.sampled)
        measured, left_out = measure(self._parts, messages, summaries, metrics, outcome)
        if self.calls.asks_to_evaluate:
            of_clients = [messages.stages.get(client, {}) for client in summaries]
            told = [stages.get("validate") for stages in ([outcome.stages] if outcome else of_clients)]
            names = [{*stage.names, *stage.scalars} if stage else set() for stage in told]
            self.validated_in_fits |= told_by_half(names)  # one client alone renames nothing
        counts = {
            "clients_accepted": len(summaries),
            "clients_rejected": len({r.client_id for r in messages.rejected} - {*summaries}),
            "bytes_down": messages.bytes_down,
            "bytes_up": messages.bytes_up,
        }
        return arrays, RoundRecord(
            server_round,
            sampled=tuple(messages.sampled),
            accepted=tuple(sorted(summaries)),
            rejected=tuple(messages.rejected + left_out),
            metrics=measured | {name: float(count) for name, count in counts.items()},
            void=void,
            sum_digest=outcome.digest if outcome and not void else "",
        )

    def evaluate(self, server_round: int, arrays: Arrays, stage: str = "validate") -> RoundRecord:
        """Have clients evaluate.

        Args:
            server_round: The current round; 0 outside a fit.
            arrays: The global weights.
            stage: ``"validate"``, or ``"test"``, which all clients are asked for.

        Returns:
            What came of it: who was asked, metrics, sites, and what was left out.

        Raises:
            NotEnoughClientsError: Too few clients are connected, or none answers.
            LightningFLError: All clients failed, in round 0 or in a test.
        """
        screen = screen_announcement if self.calls.secure else screen_evaluate_reply
        with self.calls.asking_all() if stage == "test" else nullcontext():
            if self.calls.asks_to_evaluate:
                wait_for_clients(self.grid, self.trainer.strategy, self.trainer.round_timeout)
            messages = send(self._parts, "evaluate", server_round, arrays, screen, stage)
        if not messages.outgoing:
            return RoundRecord(server_round)
        replies = messages.collect()
        summaries = {client: update for client, _, update in replies}
        if (server_round == 0 or stage == "test") and not summaries:
            refuse_if_all_failed(messages, worked=self._has_worked)
        accepted = [reply for _, reply, _ in replies]
        if not self.calls.secure:
            align_replies(accepted, shared_metrics(self._parts, summaries))
        with (
            nullcontext()
            if self.calls.secure
            else seeing_most_of(self._parts, "evaluate", replies, summaries)
        ):
            metrics = self.calls.call("aggregate_evaluate", server_round, accepted, clients=summaries)
        outcome: SecureOutcome | None = None
        if self.calls.secure:
            outcome, summaries, metrics = take_outcome(self._parts, messages, summaries, metrics)
        measured, left_out = measure(self._parts, messages, summaries, metrics, outcome)
        modes = self.trainer.site_metrics
        told = {} if self.calls.secure else summaries  # under masks there is nothing of a single site
        sites = keep_sites(told, measured, modes, self.trainer.limits.site_metrics)
        in_round = server_round and stage == "validate"
        moved = {"bytes_evaluate": float(messages.bytes_down + messages.bytes_up)} if in_round else {}
        return RoundRecord(
            server_round,
            sampled=tuple(messages.sampled),
            rejected=tuple(messages.rejected + left_out),
            metrics=measured | across_sites(sites, modes) | moved,
            sites=sites,
        )

    @property
    def _has_worked(self) -> bool:
        """Whether a round before shows that the set-up can work."""
        return any(record.accepted for record in self.trainer.rounds)

    def _aggregate(
        self, server_round: int, replies: Iterable[Message], clients: Collection[str] = ()
    ) -> tuple[Arrays | None, MetricRecord | None]:
        record, metrics = self.calls.call("aggregate_train", server_round, replies, clients=clients)
        return (None if record is None else from_record(record)), metrics


def _without_arrays(
    accepted: Iterator[tuple[str, Message, ClientUpdate]], summaries: dict[str, ClientUpdate]
) -> Iterator[Message]:
    """Pass replies on, keeping of each all but its arrays in `summaries`."""
    for client, reply, update in accepted:
        summaries[client] = replace(update, arrays={})
        del update
        yield reply
        del reply
