"""A client's own model beside the global one: Ditto."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lightning_fl_ext.client.algorithms.base import ClientAlgorithm, LocalFit
from lightning_fl_ext.client.algorithms.hooks import AlgorithmHooks
from lightning_fl_ext.client.algorithms.memory import AlgorithmMemory, find_state, require_round
from lightning_fl_ext.client.algorithms.proximal import ProximalTerm
from lightning_fl_ext.client.bridge.bridge import FlowerBridge
from lightning_fl_ext.client.instruction_limits import number
from lightning_fl_ext.errors import LightningFLError
from lightning_fl_ext.results import Arrays
from lightning_fl_ext.wire import to_torch
from lightning_fl_ext.wire.algorithm_names import ALGORITHM

LAMBDA = "ditto-lambda"
"""Key of the server's config: how strongly the own model is pulled towards the global one."""


class PersonalHalf(ClientAlgorithm):
    """Ditto (Li et al. 2021, arXiv:2012.04221, algorithm 1): the fit of the global model is a plain one.

    Beside it stands :class:`PersonalModel`, which needs a second fit: ``client_app`` runs it, and clients
    written by hand do not know this half.
    """

    name = "ditto"

    def __init__(self, settings: Mapping[str, object]) -> None:
        super().__init__(settings)
        number(LAMBDA, settings.get(LAMBDA))


class _PullTo(ProximalTerm):
    """A pull towards given weights rather than to those at the start."""

    def __init__(self, strength: float, weights: Arrays) -> None:
        super().__init__({"proximal-mu": strength})
        self._weights = weights

    def on_fit_start(self, fit: LocalFit) -> None:
        """Note the weights to pull towards."""
        self._near = {
            name: to_torch(self._weights[name]).to(parameter.device, parameter.dtype)
            for name, parameter in fit.parameters.items()
        }


def is_personal(bridge: FlowerBridge) -> bool:
    """Tell whether the server asks for a model of each client's own."""
    return bridge.round.config.get(ALGORITHM) == PersonalHalf.name


class PersonalModel:
    """One client's own model in one round.

    It begins as the global model of the first round in which the client takes part. Its fit has the loss of
    the client plus ``lambda / 2 * ||v - w_global||²``; its weights are kept, and never travel.

    Args:
        bridge: Made from the message.
        memory: Where the own weights lie.
        make: Makes a Trainer with these callbacks first, a module, and data; its first argument is what the
            folder of this run is called.
    """

    def __init__(
        self,
        bridge: FlowerBridge,
        memory: AlgorithmMemory,
        make: Callable[[str, list[Any]], tuple[Any, Any, Any]],
    ) -> None:
        self._bridge = bridge
        self._memory = memory
        self._make = make

    def fit(self) -> None:
        """Train the own model, after the fit of the global one.

        Raises:
            LightningFLError: Not all of the model travels, or the round is not told.
        """
        if self._bridge.local_entries:
            raise LightningFLError(
                "Ditto, which the server asks for, keeps a whole model of each client's own, and"
                f" {len(self._bridge.local_entries)} entries stay at home anyway, such as"
                f" `{self._bridge.local_entries[0]}`. Have all travel, or leave Ditto out: entries that stay"
                " at home are personal without it."
            )
        server_round, config = self._bridge.server_round, self._bridge.round.config
        require_round(PersonalHalf.name, server_round)
        previous, inner = self._load(server_round)
        pull = AlgorithmHooks(_PullTo(number(LAMBDA, config.get(LAMBDA)), self._bridge.round.weights))
        trainer, module, data = self._make("personal", [inner, pull])
        trainer.fit(module, data)
        if trainer.is_global_zero:  # the other ranks have no outcome
            self._memory.write(server_round, previous, inner.update.arrays)
            self._tell(inner.update.metrics)

    def evaluate(self, stage: str) -> None:
        """Evaluate the own model; before its first fit that is the global one.

        Args:
            stage: ``"validate"`` or ``"test"``.
        """
        after = self._bridge.server_round + 1 if self._bridge.server_round else 0
        _, inner = self._load(after)
        trainer, module, data = self._make("personal-evaluate", [inner])
        getattr(trainer, stage)(module, data, verbose=False)
        if trainer.is_global_zero:
            self._tell(inner.evaluation.metrics)

    def _load(self, before: int) -> tuple[int, FlowerBridge]:
        previous, state = find_state(self._memory, PersonalHalf.name, self._bridge.client_id, before, None)
        inner = FlowerBridge(
            keep="last",
            exchange=self._bridge.exchange,
            client_id=self._bridge.client_id,
            batch_size=self._bridge.batch_size,
        )
        inner._learning_rate = self._bridge._learning_rate  # of the round, for both fits
        inner.receive(state or self._bridge.round.weights, self._bridge.server_round)
        return previous, inner

    def _tell(self, metrics: Mapping[str, float]) -> None:
        self._bridge.personal_metrics = {f"personal_{name}": value for name, value in metrics.items()}
